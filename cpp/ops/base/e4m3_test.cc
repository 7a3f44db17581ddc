// Goal: a code of e4m3 stands for the number that its definition says, and a number becomes the
// nearest code. Method: every code against the definition, and numbers between two codes.
#include "ops/base/e4m3.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {
namespace {

// OCP's definition, by arithmetic.
double e4m3_by_definition(std::uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("codes of e4m3 are the numbers of its definition, and come back") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const auto bits = static_cast<std::uint8_t>(code);
    if ((code & 0x7f) == 0x7f) {
      CHECK(std::isnan(e4m3_to_f32(bits)));
      continue;
    }
    CHECK(e4m3_to_f32(bits) == e4m3_by_definition(bits));
    CHECK(f32_to_e4m3(e4m3_to_f32(bits)) == bits);
  }
  CHECK((f32_to_e4m3(kPoison) & 0x7f) == 0x7f);
  CHECK(f32_to_e4m3(1e9F) == 0x7e);
  CHECK(f32_to_e4m3(-1e9F) == 0xfe);
}

TEST_CASE("a number between two of e4m3 becomes the nearer one, the even one of two as near") {
  for (std::uint8_t code = 0; code < 0x7e; ++code) {
    CAPTURE(static_cast<int>(code));
    const float low = e4m3_to_f32(code);
    const float high = e4m3_to_f32(code + 1);
    CHECK(f32_to_e4m3(low + (high - low) * 0.49F) == code);
    CHECK(f32_to_e4m3(low + (high - low) * 0.51F) == code + 1);
    CHECK(f32_to_e4m3(low + (high - low) * 0.5F) == (code % 2 == 0 ? code : code + 1));
  }
}

}  // namespace inferno::ops::test
