// Random quantized matrices: what their weights are, and their bytes in a GPU's layout.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/base/test_support.h"
#include "ops/linear/cuda/code_layout.h"

namespace inferno::ops::cuda::test {

// Every kind, group and use of offsets that has a kernel of its own.
inline constexpr WeightFormat kCodeFormats[] = {{WeightKind::Fp8},
                                                {WeightKind::Fp8, 128},
                                                {WeightKind::Int8},
                                                {WeightKind::Int8, 128, true},
                                                {WeightKind::Int4},
                                                {WeightKind::Int4, 128},
                                                {WeightKind::Int4, 64},
                                                {WeightKind::Int4, 32},
                                                {WeightKind::Int4, 0, true},
                                                {WeightKind::Int4, 128, true},
                                                {WeightKind::Int4, 32, true},
                                                {WeightKind::Mxfp4, 32}};

// A matrix as a checkpoint has it. Scales, and offsets divided by them, are exact in the 8 bits
// that the layout keeps of them.
struct CodedMatrix {
  WeightShape shape;
  std::vector<std::byte> codes;
  std::vector<float> scales, offsets;

  CodedMatrix(const WeightShape& matrix, ops::test::Random& random)
      : shape(matrix),
        codes(matrix.num_rows * source_row_bytes(matrix.format, matrix.num_columns)) {
    const WeightFormat& format = shape.format;
    for (std::byte& code : codes) code = static_cast<std::byte>(random.integer(0, 255));
    if (format.kind == WeightKind::Fp8) {  // no NaN
      for (std::byte& code : codes) code &= std::byte{0xf7};
    }
    const float unit = format.kind == WeightKind::Int8 ? 0.001F : 0.01F;
    const std::size_t count = std::size_t{shape.num_rows} * groups();
    for (std::size_t i = 0; i < count; ++i) {
      // Of either sign, and none too small for f16.
      const float normal = random.normal();
      const float scale = std::copysign((0.25F + std::abs(normal)) * unit, normal);
      scales.push_back(ops::test::rounded(scale, Dtype::BF16));
      // Of 8 bits, only whole ones leave a difference to a code that is exact in bf16.
      const float step = format.kind == WeightKind::Int8 ? 1 : 0.25F;
      const float zero_point = static_cast<float>(random.integer(0, 64)) * step - 8.0F;
      if (format.offsets) offsets.push_back(scales.back() * zero_point);
    }
  }

  std::uint32_t groups() const { return num_groups(shape.format, shape.num_columns); }

  RowSource rows(std::uint32_t first, std::uint32_t count) const {
    const std::size_t at = std::size_t{first} * groups();
    return {codes.data() + first * source_row_bytes(shape.format, shape.num_columns), shape.format,
            count, scales.data() + at, offsets.empty() ? nullptr : offsets.data() + at};
  }

  float weight(std::uint32_t row, std::uint32_t column) const {
    const WeightFormat& format = shape.format;
    const bool halves = weight_bits(format.kind) == 4;
    const std::size_t row_bytes = source_row_bytes(format, shape.num_columns);
    const auto byte =
        static_cast<std::uint8_t>(codes[row * row_bytes + (halves ? column / 2 : column)]);
    const std::uint8_t code = halves ? byte >> (column % 2 * 4) & 15 : byte;
    const std::size_t group =
        std::size_t{row} * groups() + (format.group == 0 ? 0 : column / format.group);
    return scales[group] * weight_value(format.kind, code) -
           (format.offsets ? offsets[group] : 0.0F);
  }
};

// The bytes of a matrix whose rows come from this source.
inline std::vector<std::byte> packed(const WeightShape& shape, const RowSource& source) {
  const CodeLayout layout(shape);
  std::vector<std::byte> bytes(layout.bytes);
  StripPacker packer(shape);
  const PackedStrips to{bytes.data(),
                        reinterpret_cast<std::uint32_t*>(bytes.data() + layout.row_scales_at)};
  for (std::uint32_t strip = 0; strip < layout.num_strips; ++strip) {
    packer.pack(source, strip, strip, to);
  }
  return bytes;
}

// A random matrix's bytes; its weights [N, K].
inline std::vector<std::byte> random_codes(const WeightShape& shape, ops::test::Random& random,
                                           std::vector<float>& weights) {
  const CodedMatrix matrix(shape, random);
  weights.clear();
  for (std::uint32_t row = 0; row < shape.num_rows; ++row) {
    for (std::uint32_t k = 0; k < shape.num_columns; ++k) weights.push_back(matrix.weight(row, k));
  }
  return packed(shape, matrix.rows(0, shape.num_rows));
}

}  // namespace inferno::ops::cuda::test
