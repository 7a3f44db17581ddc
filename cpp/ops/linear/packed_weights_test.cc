// Goal: what is packed comes back, converted as stated, padding included. Method: round trips.
#include "ops/linear/packed_weights.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("packed rows come back in the device's dtype") {
  Device device(Isa::Portable, 2);
  Random random(1);
  for (const Dtype to : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
    for (const Dtype from : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
      CAPTURE(std::string(dtype_name(from)));
      CAPTURE(std::string(dtype_name(to)));
      const WeightShape shape{75, 13, to};
      const auto values = random.normals(75 * 13);
      const auto source = encode(values, from);
      const AlignedBytes packed(packed_bytes(shape));
      pack_rows(device.context(), shape, packed.data(), 0, {source.data(), from, 75});
      std::vector<float> row(13);
      for (std::uint32_t n = 0; n < 75; ++n) {
        unpack_row({packed.data(), shape}, n, row.data());
        for (std::size_t k = 0; k < 13; ++k) {
          REQUIRE(row[k] == rounded(rounded(values[n * 13 + k], from), to));
        }
      }
    }
  }
}

TEST_CASE("several tensors become one matrix, and all padding is zero") {
  Device device(Isa::Portable, 3);
  Random random(2);
  const WeightShape shape{50, 7, Dtype::BF16};  // 14 rows and one column of padding
  const auto values = random.normals(50 * 7);
  const AlignedBytes packed(packed_bytes(shape));
  std::fill_n(packed.data(), packed.size(), std::byte{0xff});
  std::uint32_t first = 0;
  for (const std::uint32_t rows : {20U, 3U, 27U}) {
    const auto source = encode(std::span(values).subspan(first * 7, rows * 7), Dtype::F32);
    pack_rows(device.context(), shape, packed.data(), first, {source.data(), Dtype::F32, rows});
    first += rows;
  }
  std::size_t num_zeros = 0;
  for (std::size_t i = 0; i < packed.size() / 2; ++i) {
    const float value = load_element(packed.data(), Dtype::BF16, i);
    REQUIRE(!std::isnan(value));
    if (value == 0.0F) ++num_zeros;
  }
  CHECK(num_zeros == 64 * 8 - 50 * 7);
  std::vector<float> row(7);
  for (std::uint32_t n = 0; n < 50; ++n) {
    unpack_row({packed.data(), shape}, n, row.data());
    for (std::size_t k = 0; k < 7; ++k) REQUIRE(row[k] == rounded(values[n * 7 + k], Dtype::BF16));
  }
}

TEST_CASE("a panel that is copied as a whole is the one that its rows make one by one") {
  Device device(Isa::Portable, 1);
  Random random(4);
  const WeightFormat formats[] = {Dtype::F32,
                                  Dtype::F16,
                                  Dtype::BF16,
                                  {WeightKind::Fp8, 128},
                                  {WeightKind::Int8},
                                  {WeightKind::Int8, 32, true},
                                  {WeightKind::Int4, 64, true},
                                  {WeightKind::Int4},
                                  {WeightKind::Mxfp4, 32}};
  for (const WeightFormat& format : formats) {
    CAPTURE(std::string(weight_kind_name(format.kind)));
    const WeightShape shape{2 * kPanelRows, 212, format};
    std::vector<std::byte> rows(shape.num_rows * source_row_bytes(format, shape.num_columns));
    for (std::byte& byte : rows) byte = static_cast<std::byte>(random.integer(0, 255));
    const std::size_t groups = shape.num_rows * num_groups(format, shape.num_columns);
    const std::vector<float> scales = random.normals(groups);
    const std::vector<float> offsets = random.normals(groups);
    const AlignedBytes whole(packed_bytes(shape));
    const AlignedBytes by_rows(packed_bytes(shape));
    std::fill_n(whole.data(), whole.size(), std::byte{0});
    std::fill_n(by_rows.data(), by_rows.size(), std::byte{0});
    RowSource source{rows.data(), format, shape.num_rows, scales.data(),
                     format.offsets ? offsets.data() : nullptr};
    pack_rows(device.context(), shape, whole.data(), 0, source);
    const std::size_t row_groups = num_groups(format, shape.num_columns);
    source.num_rows = 1;
    for (std::uint32_t row = 0; row < shape.num_rows; ++row) {
      pack_rows(device.context(), shape, by_rows.data(), row, source);
      source.data += source_row_bytes(format, shape.num_columns);
      source.scales += row_groups;
      if (source.offsets != nullptr) source.offsets += row_groups;
    }
    CHECK(std::equal(whole.data(), whole.data() + whole.size(), by_rows.data()));
  }
}

TEST_CASE("rows beyond the matrix are refused") {
  Device device(Isa::Portable, 1);
  const WeightShape shape{4, 2, Dtype::F32};
  const AlignedBytes packed(packed_bytes(shape));
  const std::vector<std::byte> source(100);
  for (const auto& [first, rows] : {std::pair{0U, 5U}, {3U, 2U}, {5U, 0U}, {1U, 0xffffffffU}}) {
    CHECK_THROWS_AS(
        pack_rows(device.context(), shape, packed.data(), first, {source.data(), Dtype::F32, rows}),
        std::invalid_argument);
  }
}

}  // namespace inferno::ops::test
