#include "ops/linear/packed_codes.h"

#include <algorithm>
#include <cstring>

namespace inferno::ops {

namespace {

// What a row has at one set of columns: two codes of fp8, four of the others.
template <WeightKind K>
struct Set {
  using Word = std::uint32_t;
  static Word load(const std::byte* set, std::uint32_t lane) {
    const std::uint32_t position = K == WeightKind::Int8 ? lane : lane % 16;
    Word word;
    std::memcpy(&word, set + position * sizeof(Word), sizeof(Word));
    if constexpr (K == WeightKind::Int8) return word ^ 0x80808080U;
    return word >> (lane < 16 ? 0 : 4) & 0x0f0f0f0fU;
  }
  static void store(std::byte* set, std::uint32_t lane, Word word) {
    const std::uint32_t position = K == WeightKind::Int8 ? lane : lane % 16;
    std::byte* to = set + position * sizeof(Word);
    if constexpr (K == WeightKind::Int8) {
      word ^= 0x80808080U;
    } else {
      Word both;
      std::memcpy(&both, to, sizeof(Word));
      word = lane < 16 ? (both & 0xf0f0f0f0U) | word : (both & 0x0f0f0f0fU) | word << 4;
    }
    std::memcpy(to, &word, sizeof(Word));
  }
};

template <>
struct Set<WeightKind::Fp8> {
  using Word = std::uint16_t;
  static Word load(const std::byte* set, std::uint32_t lane) {
    Word word;
    std::memcpy(&word, set + lane * sizeof(Word), sizeof(Word));
    return word;
  }
  static void store(std::byte* set, std::uint32_t lane, Word word) {
    std::memcpy(set + lane * sizeof(Word), &word, sizeof(Word));
  }
};

// Calls visit(a set, its first column) from column begin on, itself a set's first.
template <typename Visit>
void for_each_set(const PanelLayout& layout, std::size_t begin, std::size_t end,
                  std::size_t together, Visit visit) {
  while (begin < end) {
    std::size_t at = layout.column_at(begin);
    const std::size_t group_end = std::min(end, (begin / layout.group + 1) * layout.group);
    for (; begin < group_end; begin += together) {
      visit(at, begin);
      at += together * layout.column_bytes;
    }
  }
}

template <WeightKind K>
void pack(const Lane& lane, const std::uint8_t* codes) {
  using Word = typename Set<K>::Word;
  const std::size_t num_columns = codes == nullptr ? 0 : lane.shape.num_columns;
  for_each_set(lane.layout, 0, lane.layout.num_columns, sizeof(Word),
               [&](std::size_t at, std::size_t k) {
                 Word word;
                 if (k + sizeof(Word) <= num_columns) {
                   std::memcpy(&word, codes + k, sizeof(Word));
                 } else {
                   std::uint8_t last[sizeof(Word)];
                   std::fill_n(last, sizeof(Word), zero_code(K));
                   for (std::size_t i = 0; k + i < num_columns; ++i) last[i] = codes[k + i];
                   std::memcpy(&word, last, sizeof(Word));
                 }
                 Set<K>::store(lane.panel + at, lane.index, word);
               });
}

// `count` words of each row from byte `from` on, side by side: out [count][kPanelRows].
template <typename Word>
void copy_words(const PanelRows& rows, std::size_t from, std::size_t count, std::byte* out,
                Word flipped) {
  constexpr std::size_t kAtOnce = 16;  // of each row, a cache line
  for (std::size_t first = 0; first < count; first += kAtOnce) {
    const std::size_t words = std::min(kAtOnce, count - first);
    for (std::size_t row = 0; row < kPanelRows; ++row) {
      const std::byte* source = rows.data + row * rows.row_bytes + from + first * sizeof(Word);
      std::byte* to = out + (first * kPanelRows + row) * sizeof(Word);
      for (std::size_t i = 0; i < words; ++i) {
        Word word;
        std::memcpy(&word, source + i * sizeof(Word), sizeof(Word));
        word ^= flipped;
        std::memcpy(to + i * kPanelRows * sizeof(Word), &word, sizeof(Word));
      }
    }
  }
}

// Four halves of bytes as four bytes.
std::uint32_t spread(const std::byte* halves) {
  std::uint16_t four;
  std::memcpy(&four, halves, sizeof(four));
  const std::uint32_t pairs = (four | std::uint32_t{four} << 8) & 0x00ff00ffU;
  return (pairs | pairs << 4) & 0x0f0f0f0fU;
}

// `count` sets of four columns of four bits from byte `from` on.
void copy_halves(const PanelRows& rows, std::size_t from, std::size_t count, std::byte* out) {
  constexpr std::size_t kAtOnce = 32;  // of each row, a cache line
  constexpr std::size_t kLanes = kPanelRows / 2;
  for (std::size_t first = 0; first < count; first += kAtOnce) {
    const std::size_t end = std::min(first + kAtOnce, count);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const std::byte* low = rows.data + lane * rows.row_bytes + from;
      const std::byte* high = low + kLanes * rows.row_bytes;
      for (std::size_t set = first; set < end; ++set) {
        const std::uint32_t word = spread(low + set * 2) | spread(high + set * 2) << 4;
        std::memcpy(out + (set * kLanes + lane) * sizeof(word), &word, sizeof(word));
      }
    }
  }
}

void copy_group(WeightKind kind, const PanelRows& rows, const Columns& columns, std::byte* out) {
  const std::size_t from = std::size_t{columns.begin} * weight_bits(kind) / 8;
  const std::size_t count = columns.end - columns.begin;
  switch (kind) {
    case WeightKind::F32:
      return copy_words<std::uint32_t>(rows, from, count, out, 0);
    case WeightKind::F16:
      return copy_words<std::uint16_t>(rows, from, count, out, 0);
    case WeightKind::BF16:
      return copy_words<std::uint32_t>(rows, from, count / 2, out, 0);
    case WeightKind::Fp8:
      return copy_words<std::uint16_t>(rows, from, count / 2, out, 0);
    case WeightKind::Int8:
      return copy_words<std::uint32_t>(rows, from, count / 4, out, 0x80808080U);
    default:
      return copy_halves(rows, from, count / 4, out);
  }
}

template <typename Fn>
void with_kind(WeightKind kind, Fn fn) {
  switch (kind) {
    case WeightKind::Fp8:
      return fn.template operator()<WeightKind::Fp8>();
    case WeightKind::Int8:
      return fn.template operator()<WeightKind::Int8>();
    case WeightKind::Int4:
      return fn.template operator()<WeightKind::Int4>();
    default:
      return fn.template operator()<WeightKind::Mxfp4>();
  }
}

// Where a lane's scale of a group is; its offset is one vector of the panel's rows further.
std::byte* scale_at(const Lane& lane, std::size_t group) {
  return lane.panel + lane.layout.group_at(group * lane.layout.group) + lane.index * sizeof(float);
}

}  // namespace

void pack_codes(const Lane& lane, const CodedRow& row) noexcept {
  const WeightFormat& format = lane.shape.format;
  with_kind(format.kind, [&]<WeightKind K>() { pack<K>(lane, row.codes); });
  pack_scales(lane, row);
}

void pack_scales(const Lane& lane, const CodedRow& row) noexcept {
  const WeightFormat& format = lane.shape.format;
  for (std::size_t group = 0; group < lane.layout.num_groups; ++group) {
    const float scale = row.scales == nullptr ? 0.0F : row.scales[group];
    const float offset = row.offsets == nullptr ? 0.0F : row.offsets[group];
    std::byte* to = scale_at(lane, group);
    std::memcpy(to, &scale, sizeof(float));
    if (format.offsets) std::memcpy(to + kPanelRows * sizeof(float), &offset, sizeof(float));
  }
}

bool copy_panel(const WeightShape& shape, const PanelLayout& layout, const PanelRows& rows,
                std::byte* panel) noexcept {
  if (layout.num_columns != shape.num_columns) return false;
  for (std::size_t begin = 0; begin < shape.num_columns; begin += layout.group) {
    const std::size_t end = std::min<std::size_t>(begin + layout.group, shape.num_columns);
    copy_group(shape.format.kind, rows,
               {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)},
               panel + layout.column_at(begin));
  }
  return true;
}

void unpack_codes(const Lane& lane, std::size_t begin, std::size_t end, float* out) noexcept {
  const WeightFormat& format = lane.shape.format;
  const auto value = [&](std::size_t k, std::uint8_t code) {
    float scale;
    float offset = 0;
    const std::byte* at = scale_at(lane, k / lane.layout.group);
    std::memcpy(&scale, at, sizeof(float));
    if (format.offsets) std::memcpy(&offset, at + kPanelRows * sizeof(float), sizeof(float));
    return scale * weight_value(format.kind, code) - offset;
  };
  with_kind(format.kind, [&]<WeightKind K>() {
    using Word = typename Set<K>::Word;
    for_each_set(lane.layout, begin, end, sizeof(Word), [&](std::size_t at, std::size_t k) {
      const Word word = Set<K>::load(lane.panel + at, lane.index);
      std::uint8_t codes[sizeof(Word)];
      std::memcpy(codes, &word, sizeof(Word));
      for (std::size_t i = 0; i < sizeof(Word) && k + i < end; ++i) {
        out[k + i - begin] = value(k + i, codes[i]);
      }
    });
  });
}

void dequantize(const CodedRow& row, const WeightFormat& format, std::uint32_t num_columns,
                float* out) noexcept {
  for (std::uint32_t k = 0; k < num_columns; ++k) {
    const std::uint32_t group = format.group == 0 ? 0 : k / format.group;
    const float offset = row.offsets == nullptr ? 0.0F : row.offsets[group];
    out[k] = row.scales[group] * weight_value(format.kind, row.codes[k]) - offset;
  }
}

}  // namespace inferno::ops
