// Goal: conversions are exact or rounded to nearest even. Method: all 65,536 bit patterns, and the
// middle between neighbours.
#include "ops/base/dtype.h"

#include <string_view>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

template <typename Widen, typename Narrow>
void check_rounding(std::uint16_t infinity, Widen widen, Narrow narrow) {
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = widen(half);
    if ((half & 0x7fffU) > infinity) {
      REQUIRE(std::isnan(value));
      REQUIRE(std::isnan(widen(narrow(value))));
      continue;
    }
    REQUIRE(narrow(value) == half);
    if ((half & 0x7fffU) + 1 >= infinity) continue;
    const auto next = static_cast<std::uint16_t>(half + 1);
    const auto middle = static_cast<float>((double{value} + double{widen(next)}) / 2);
    REQUIRE(narrow(middle) == (half % 2 == 0 ? half : next));
    REQUIRE(narrow(std::nextafter(middle, value)) == half);
    REQUIRE(narrow(std::nextafter(middle, widen(next))) == next);
  }
  const auto huge = narrow(std::numeric_limits<float>::max());
  CHECK(huge == infinity);
  CHECK(narrow(-std::numeric_limits<float>::infinity()) == (infinity | 0x8000U));
}

}  // namespace

TEST_CASE("f16 rounds to nearest even") { check_rounding(0x7c00U, f16_to_f32, f32_to_f16); }

TEST_CASE("bf16 rounds to nearest even") { check_rounding(0x7f80U, bf16_to_f32, f32_to_bf16); }

TEST_CASE("a NaN whose low bits only are set stays one") {
  const float nan = std::bit_cast<float>(0x7f800001U);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(nan))));
  CHECK(std::isnan(f16_to_f32(f32_to_f16(nan))));
}

TEST_CASE("dtypes have sizes and names") {
  CHECK(dtype_bytes(Dtype::F32) == 4);
  CHECK(dtype_bytes(Dtype::F16) == 2);
  CHECK(dtype_bytes(Dtype::BF16) == 2);
  CHECK(dtype_bytes(Dtype::Fp8) == 1);
  CHECK(std::string_view(dtype_name(Dtype::F16)) == "f16");
}

TEST_CASE("an element of fp8 is one byte, and touches no other") {
  std::byte bytes[3] = {};
  store_element(bytes, Dtype::Fp8, 1, -3.3F);
  CHECK(load_element(bytes, Dtype::Fp8, 1) == -3.25F);
  CHECK(bytes[0] == std::byte{0});
  CHECK(bytes[2] == std::byte{0});
}

}  // namespace inferno::ops::test
