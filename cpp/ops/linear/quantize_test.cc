// Goal: what is quantized is as near as its format allows. Method: random rows against bounds on
// each weight, and int4's squared error against that of the plain rule.
#include "ops/linear/quantize.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {
namespace {

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

TEST_CASE("a weight in fp8 is off by at most half of its last place") {
  Random random(4);
  const std::vector<float> row = random.normals(700);
  std::vector<std::uint8_t> codes(700);
  float scale = 0;
  quantize_row(row.data(), 700, {WeightKind::Fp8}, {codes.data(), &scale});
  for (std::size_t k = 0; k < 700; ++k) {
    const float weight = scale * weight_value(WeightKind::Fp8, codes[k]);
    // Three bits behind the point; below 2^-6 of the scale they are worth 2^-9.
    const float half = std::max(std::abs(row[k]) / 16, scale * 0x1p-10F);
    REQUIRE(std::abs(weight - row[k]) <= 1.0001F * half);
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

TEST_CASE("values that are too small to be scaled become zeros") {
  for (const WeightKind kind : {WeightKind::Fp8, WeightKind::Int8, WeightKind::Int4}) {
    CAPTURE(std::string(weight_kind_name(kind)));
    const std::vector<float> row = {1e-38F, 0, -1e-40F, 1e-45F};
    CHECK(squared_error(row, {kind}) < 1e-70);
  }
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
