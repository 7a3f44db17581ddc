#include "ops/linear/cuda/code_layout.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "ops/linear/source_rows.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kStepColumns = 16;
constexpr std::uint32_t kLaneBytes = 16;
constexpr std::uint32_t kSteps = kSpanColumns / kStepColumns;

// A lane's four codes of a step, in the order of a word of 8 bits each.
struct LaneCodes {
  LaneCodes(const std::uint8_t* step, std::uint32_t lane)
      : at{step[2 * lane], step[2 * lane + 8], step[2 * lane + 1], step[2 * lane + 9]} {}
  std::uint8_t at[4];  // [column of a pair][pair]
};

bool is_nan_code(std::uint8_t code) { return (code & 0x7fU) == 0x7fU; }

}  // namespace

CodeLayout::CodeLayout(const WeightShape& shape) noexcept
    : num_strips((shape.num_rows + kStripRows - 1) / kStripRows),
      num_spans((shape.num_columns + kSpanColumns - 1) / kSpanColumns),
      code_bytes(kStripRows * kSpanColumns * weight_bits(shape.format.kind) / 8),
      groups(shape.format.group == 0 ? 0 : kSpanColumns / shape.format.group),
      row_major(groups == 0 && weight_bits(shape.format.kind) == 8),
      span_bytes(code_bytes + std::size_t{groups} * kStripRows * kScaleBytes),
      strip_bytes(num_spans * span_bytes),
      row_scales_at(num_strips * strip_bytes) {
  const std::size_t row_scales = groups == 0 ? std::size_t{num_strips} * kStripRows : 0;
  bytes = (row_scales_at + row_scales * kScaleBytes + 255) / 256 * 256;
}

std::uint32_t CodeLayout::log_group_steps() const noexcept {
  return static_cast<std::uint32_t>(
      std::countr_zero(kSpanColumns / kStepColumns / std::max(1U, groups)));
}

std::uint32_t scale_word(float scale, float offset, bool offsets) noexcept {
  if (!offsets) return std::bit_cast<std::uint32_t>(scale);
  if (scale == 0) {  // codes are those of 0 then (mend), and the weight -offset
    return std::uint32_t{f32_to_f16(offset)} << 16 | f32_to_bf16(1.0F);
  }
  return std::uint32_t{f32_to_f16(scale)} << 16 | f32_to_bf16(offset / scale);
}

bool has_code_layout(const WeightFormat& format) noexcept {
  const auto group_is = [&](std::initializer_list<std::uint32_t> groups) {
    return std::find(groups.begin(), groups.end(), format.group) != groups.end();
  };
  switch (format.kind) {
    case WeightKind::Fp8:
      return !format.offsets && group_is({0, 128});
    case WeightKind::Int8:
      return group_is({0, 128});
    case WeightKind::Int4:
      return group_is({0, 32, 64, 128});
    case WeightKind::Mxfp4:
      return !format.offsets && group_is({32});
    default:
      return false;
  }
}

StripPacker::StripPacker(const WeightShape& shape)
    : shape_(shape),
      layout_(shape),
      codes_(std::size_t{layout_.num_spans} * kSpanColumns),
      scales_(num_groups(shape.format, shape.num_columns)) {}

// `to`: where the row's part of the span begins.
void StripPacker::pack_bytes(const std::uint8_t* codes, std::uint32_t swizzle,
                             std::byte* to) const {
  for (std::uint32_t lane = 0; lane < 4; ++lane) {
    for (std::uint32_t step = 0; step < kSteps; ++step) {
      const LaneCodes own(codes + step * kStepColumns, lane);
      const std::uint32_t place = (step / 4 * 4 + lane) ^ swizzle;
      std::memcpy(to + place * kLaneBytes + step % 4 * 4, own.at, 4);
    }
  }
}

void StripPacker::pack_halves(const std::uint8_t* codes, std::uint32_t lane_row,
                              std::byte* span) const {
  const std::uint32_t signs = shape_.format.kind == WeightKind::Int4 ? 0x88 : 0;
  for (std::uint32_t lane = 0; lane < 4; ++lane) {
    std::byte* to = span + (lane_row * 4 + lane) * kLaneBytes;
    for (std::uint32_t step = 0; step < kSteps; step += 2) {
      const LaneCodes own(codes + step * kStepColumns, lane);
      const LaneCodes next(codes + (step + 1) * kStepColumns, lane);
      std::uint8_t word[4];
      for (std::uint32_t i = 0; i < 4; ++i) {
        word[i] = static_cast<std::uint8_t>((own.at[i] | next.at[i] << 4) ^ signs);
      }
      std::memcpy(to + step / 2 * 4, word, 4);
    }
  }
}

void StripPacker::pack_row(const CodedRow& row, std::uint32_t lane_row, std::byte* strip) {
  const std::uint8_t zero = zero_code(shape_.format.kind);
  const std::uint32_t num_columns = row.codes == nullptr ? 0 : shape_.num_columns;
  std::fill(codes_.begin() + num_columns, codes_.end(), zero);
  const std::uint32_t all = static_cast<std::uint32_t>(scales_.size());
  for (std::uint32_t s = 0; s < layout_.num_spans; ++s) {
    std::byte* span = strip + s * layout_.span_bytes;
    const std::uint8_t* codes = codes_.data() + std::size_t{s} * kSpanColumns;
    if (layout_.row_major) {
      const std::size_t row_bytes = std::size_t{layout_.num_spans} * kSpanColumns;
      pack_bytes(codes, 0, strip + lane_row * row_bytes + std::size_t{s} * kSpanColumns);
    } else if (weight_bits(shape_.format.kind) == 8) {
      pack_bytes(codes, lane_row, span + lane_row * kSpanColumns);
    } else {
      pack_halves(codes, lane_row, span);
    }
    for (std::uint32_t g = 0; g < layout_.groups; ++g) {
      const std::uint32_t group = s * layout_.groups + g;
      const bool exists = row.scales != nullptr && group < all;
      const float offset = exists && row.offsets != nullptr ? row.offsets[group] : 0.0F;
      const std::uint32_t word =
          exists ? scale_word(row.scales[group], offset, shape_.format.offsets) : 0;
      std::memcpy(span + layout_.code_bytes + (g * kStripRows + lane_row) * kScaleBytes, &word,
                  kScaleBytes);
    }
  }
}

// What the kernels' arithmetic on codes would get wrong: codes of fp8 that are no number, to which
// it gives a value; and a scale of 0, which leaves only the offset of a weight.
void StripPacker::mend(CodedRow& row) {
  const WeightFormat& format = shape_.format;
  if (row.codes == nullptr || !(format.kind == WeightKind::Fp8 || format.offsets)) return;
  const std::size_t length = format.group == 0 ? shape_.num_columns : format.group;
  for (std::size_t g = 0; g < scales_.size(); ++g) {
    const auto begin = codes_.begin() + g * length;
    const auto end = codes_.begin() + std::min<std::size_t>((g + 1) * length, shape_.num_columns);
    scales_[g] = row.scales[g];
    if (format.offsets) {
      if (scales_[g] == 0) std::fill(begin, end, zero_code(format.kind));
    } else if (std::any_of(begin, end, is_nan_code)) {
      scales_[g] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  row.scales = scales_.data();
}

void StripPacker::pack(const RowSource& source, std::uint32_t strip, std::uint32_t place,
                       const PackedStrips& to) {
  SourceRows rows(source, shape_.num_columns, shape_.format);
  for (std::uint32_t r = 0; r < kStripRows; ++r) {
    const std::uint32_t index = strip * kStripRows + r;
    CodedRow row{};  // of the padding
    if (index < source.num_rows) {
      row = rows.codes(index);
      std::copy_n(row.codes, shape_.num_columns, codes_.begin());
    }
    mend(row);
    pack_row(row, r, to.strips + place * layout_.strip_bytes);
    if (layout_.groups > 0) continue;
    const float offset = row.offsets == nullptr ? 0.0F : *row.offsets;
    to.row_scales[place * kStripRows + r] =
        row.scales == nullptr ? 0 : scale_word(*row.scales, offset, shape_.format.offsets);
  }
}

void check_strips(const WeightShape& shape, std::uint32_t first_row, const RowSource& source) {
  const auto refuse = [](const std::string& what) {
    throw std::invalid_argument("other: quantized rows for a GPU: " + what);
  };
  if (first_row > shape.num_rows || source.num_rows > shape.num_rows - first_row) {
    refuse("they do not fit into the matrix");
  }
  const std::uint32_t end = first_row + source.num_rows;
  if (first_row % kStripRows != 0 || (end % kStripRows != 0 && end != shape.num_rows)) {
    refuse("rows " + std::to_string(first_row) + " to " + std::to_string(end) +
           ", expected multiples of " + std::to_string(kStripRows));
  }
  if (source.format.is_quantized() && source.format != shape.format) {
    refuse(std::string("codes of ") + weight_kind_name(source.format.kind) + " for a matrix of " +
           weight_kind_name(shape.format.kind) + ", expected the same groups and offsets");
  }
  if (!source.format.is_quantized() &&
      (shape.format.offsets || shape.format.kind == WeightKind::Mxfp4)) {
    refuse(std::string("elements for a matrix of ") + weight_kind_name(shape.format.kind) +
           (shape.format.offsets ? " with offsets" : "") + ", expected codes");
  }
}

}  // namespace inferno::ops::cuda
