// Goal: what is quantized is as near as its format allows. Method: every code of e4m3 against its
// definition; random rows against bounds on each weight, and int4's squared error against that of
// the plain rule.
#include "ops/linear/quantize.h"

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

double squared_error(std::span<const float> row, const WeightFormat& format) {
  const auto num_columns = static_cast<std::uint32_t>(row.size());
  std::vector<std::uint8_t> codes(row.size());
  std::vector<float> scales(num_groups(format, num_columns));
  quantize_row(row.data(), num_columns, format, {codes.data(), scales.data()});
  double sum = 0;
  for (std::size_t k = 0; k < row.size(); ++k) {
    const float scale = scales[format.group == 0 ? 0 : k / format.group];
    sum += std::pow(double{scale} * weight_value(format.kind, codes[k]) - row[k], 2);
  }
  return sum;
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

TEST_CASE("a weight is off by at most half a step of its group") {
  Random random(1);
  const std::vector<float> row = random.normals(700);
  for (const WeightFormat& format : {WeightFormat{WeightKind::Int8}, {WeightKind::Int8, 32}}) {
    std::vector<std::uint8_t> codes(700);
    std::vector<float> scales(num_groups(format, 700));
    quantize_row(row.data(), 700, format, {codes.data(), scales.data()});
    for (std::size_t k = 0; k < 700; ++k) {
      const float scale = scales[format.group == 0 ? 0 : k / format.group];
      const float weight = scale * weight_value(format.kind, codes[k]);
      REQUIRE(std::abs(weight - row[k]) <= 0.5001F * scale);
    }
  }
}

TEST_CASE("four bits leave less error than the largest weight alone would have it") {
  Random random(2);
  const std::vector<float> row = random.normals(4096);
  double plain = 0;
  for (std::size_t first = 0; first < row.size(); first += 128) {
    float largest = 0;
    for (std::size_t k = 0; k < 128; ++k) largest = std::max(largest, std::abs(row[first + k]));
    const float scale = largest / 7;
    for (std::size_t k = 0; k < 128; ++k) {
      plain += std::pow(std::nearbyint(row[first + k] / scale) * scale - row[first + k], 2);
    }
  }
  CHECK(squared_error(row, {WeightKind::Int4, 128}) < 0.8 * plain);
  CHECK(squared_error(row, {WeightKind::Int8, 128}) < 0.01 * plain);
}

TEST_CASE("rows of zeros stay zeros, and what is no number is one after it") {
  for (const WeightKind kind : {WeightKind::Fp8, WeightKind::Int8, WeightKind::Int4}) {
    CAPTURE(std::string(weight_kind_name(kind)));
    std::vector<float> row(64, 0.0F);
    CHECK(squared_error(row, {kind, 32}) == 0);
    row[40] = kPoison;
    std::vector<std::uint8_t> codes(64);
    float scales[2];
    quantize_row(row.data(), 64, {kind, 32}, {codes.data(), scales});
    CHECK(scales[0] == 0);
    CHECK(std::isnan(scales[1]));
  }
}

}  // namespace inferno::ops::test
