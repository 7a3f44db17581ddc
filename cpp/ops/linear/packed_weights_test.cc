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
