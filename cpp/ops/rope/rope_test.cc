// Goal: frequencies, angles and turns are those of transformers. Method: values worked out by hand
// for Llama 3.2, and float64.
#include "ops/rope/rope.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

RopeConfig plain(std::uint32_t head_dim) {
  return {head_dim, 10000.0F, RopeScaling::None, 1.0F, 1.0F, 1.0F, 0};
}

}  // namespace

TEST_CASE("plain and linear frequencies are powers of theta") {
  std::vector<float> none(8);
  rope_inv_freq(plain(16), none);
  RopeConfig linear = plain(16);
  linear.scaling = RopeScaling::Linear;
  linear.factor = 4.0F;
  std::vector<float> scaled(8);
  rope_inv_freq(linear, scaled);
  for (int i = 0; i < 8; ++i) {
    const double expected = std::pow(10000.0, -i / 8.0);
    CHECK(none[i] == doctest::Approx(expected).epsilon(1e-6));
    CHECK(scaled[i] == doctest::Approx(expected / 4.0).epsilon(1e-6));
  }
}

TEST_CASE("llama3 frequencies keep short waves, divide long ones and ramp between") {
  // Llama 3.2 1B: head_dim 64, theta 500000, factor 32, low 1, high 4, 8192 positions.
  const RopeConfig config{64, 500000.0F, RopeScaling::Llama3, 32.0F, 1.0F, 4.0F, 8192};
  std::vector<float> inv_freq(32);
  rope_inv_freq(config, inv_freq);
  const std::vector<std::pair<int, double>> expected = {
      {0, 1.0},
      {1, 0.663601238},
      {14, 0.00321144599},  // the last short wave
      {15, 0.00129054793},  // the ramp
      {16, 0.000429556797},
      {17, 9.7082878e-05},
      {18, 1.94616382e-05},  // the first long wave
      {31, 9.41830673e-08}};
  for (const auto& [i, value] : expected) {
    CAPTURE(i);
    CHECK(inv_freq[i] == doctest::Approx(value).epsilon(1e-5));
  }
}

TEST_CASE("contradictory rope settings are refused") {
  std::vector<float> inv_freq(8);
  CHECK_THROWS_AS(rope_inv_freq(plain(15), inv_freq), std::invalid_argument);
  CHECK_THROWS_AS(rope_inv_freq(plain(18), inv_freq), std::invalid_argument);
  RopeConfig config{16, 10000.0F, RopeScaling::Linear, 0.5F, 1.0F, 4.0F, 8192};
  CHECK_THROWS_AS(rope_inv_freq(config, inv_freq), std::invalid_argument);
  config = {16, 10000.0F, RopeScaling::Llama3, 8.0F, 4.0F, 4.0F, 8192};
  CHECK_THROWS_AS(rope_inv_freq(config, inv_freq), std::invalid_argument);
}

TEST_CASE("heads are turned in halves, in place, and the rest of the row is left") {
  Random random(1);
  const std::uint32_t dim = 12;
  const std::uint32_t heads = 5;
  const std::size_t stride = 70;
  const std::uint32_t tokens = 300;
  std::vector<float> inv_freq(dim / 2);
  rope_inv_freq(plain(dim), inv_freq);
  std::vector<std::uint32_t> positions;
  for (std::uint32_t t = 0; t < tokens; ++t) positions.push_back(random.integer(0, 2000));
  const auto x = random.normals(tokens * stride);
  for (const std::uint32_t num_threads : {1U, 3U}) {
    Device device(Isa::Portable, num_threads);
    std::vector<float> cos_sin(std::size_t{tokens} * dim);
    rope_angles(device.context(), inv_freq, positions, cos_sin.data());
    std::vector<float> turned(x);
    rope(device.context(), {turned.data(), stride, cos_sin.data(), tokens, heads, dim});
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* from = x.data() + t * stride;
      const float* to = turned.data() + t * stride;
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t i = 0; i < dim / 2; ++i) {
          const double angle = static_cast<float>(positions[t]) * inv_freq[i];
          const double a = from[h * dim + i];
          const double b = from[h * dim + i + dim / 2];
          REQUIRE(std::abs(to[h * dim + i] - (a * std::cos(angle) - b * std::sin(angle))) < 1e-6);
          REQUIRE(std::abs(to[h * dim + i + dim / 2] -
                           (b * std::cos(angle) + a * std::sin(angle))) < 1e-6);
        }
      }
      for (std::size_t i = heads * dim; i < stride; ++i) REQUIRE(to[i] == from[i]);
    }
  }
}

}  // namespace inferno::ops::test
