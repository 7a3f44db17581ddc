// Goal: codes come back from a panel as the weights that they stand for. Method: random codes,
// scales and offsets of each format, in rows and columns that fill no panel and no group.
#include "ops/linear/packed_codes.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("every code comes back as the weight that it stands for") {
  Device device(Isa::Portable, 2);
  Random random(3);
  for (const WeightFormat& format : {WeightFormat{WeightKind::Fp8, 128},
                                     {WeightKind::Int8},
                                     {WeightKind::Int8, 32, true},
                                     {WeightKind::Int4, 32},
                                     {WeightKind::Int4, 64, true},
                                     {WeightKind::Mxfp4, 32}}) {
    CAPTURE(std::string(weight_kind_name(format.kind)));
    constexpr std::uint32_t kRows = 75;
    constexpr std::uint32_t kColumns = 269;
    const WeightShape shape{kRows, kColumns, format};
    const std::size_t row_bytes = source_row_bytes(format, kColumns);
    std::vector<std::byte> codes(kRows * row_bytes);
    for (std::byte& code : codes) code = static_cast<std::byte>(random.integer(0, 255));
    const std::uint32_t groups = num_groups(format, kColumns);
    const std::vector<float> scales = random.normals(std::size_t{kRows} * groups);
    const std::vector<float> offsets = random.normals(std::size_t{kRows} * groups);
    const AlignedBytes packed(packed_bytes(shape));
    // Two tensors become one matrix, as q and k do.
    for (const auto& [first, rows] : {std::pair{0U, 44U}, {44U, 31U}}) {
      pack_rows(device.context(), shape, packed.data(), first,
                {codes.data() + first * row_bytes, format, rows, scales.data() + first * groups,
                 format.offsets ? offsets.data() + first * groups : nullptr});
    }
    std::vector<float> row(kColumns);
    for (std::uint32_t n = 0; n < kRows; ++n) {
      unpack_row({packed.data(), shape}, n, row.data());
      for (std::uint32_t k = 0; k < kColumns; ++k) {
        const bool bytes = weight_bits(format.kind) == 8;
        const auto byte = std::to_integer<std::uint8_t>(codes[n * row_bytes + (bytes ? k : k / 2)]);
        const std::uint8_t code = bytes ? byte : byte >> (k % 2 * 4) & 15;
        const std::uint32_t group = n * groups + (format.group == 0 ? 0 : k / format.group);
        const float weight = scales[group] * weight_value(format.kind, code) -
                             (format.offsets ? offsets[group] : 0.0F);
        REQUIRE((row[k] == weight || (std::isnan(row[k]) && std::isnan(weight))));
      }
    }
  }
}

TEST_CASE("codes become elements where a matrix is of elements, and no codes of another format") {
  Device device(Isa::Portable, 1);
  const std::vector<std::byte> codes = {std::byte{0x7f}, std::byte{0x80}, std::byte{1}};
  const float scale = 0.5F;
  const RowSource source{codes.data(), WeightKind::Int8, 1, &scale};
  const WeightShape shape{1, 3, Dtype::BF16};
  const AlignedBytes packed(packed_bytes(shape));
  pack_rows(device.context(), shape, packed.data(), 0, source);
  float row[3];
  unpack_row({packed.data(), shape}, 0, row);
  CHECK(row[0] == 63.5F);
  CHECK(row[1] == -64.0F);
  CHECK(row[2] == 0.5F);
  const WeightShape other{1, 3, {WeightKind::Int8, 32}};
  const AlignedBytes more(packed_bytes(other));
  CHECK_THROWS_AS(pack_rows(device.context(), other, more.data(), 0, source),
                  std::invalid_argument);
}

}  // namespace inferno::ops::test
