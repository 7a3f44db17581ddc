// Goal: frequencies, angles and turns are those of transformers. Method: values worked out by hand
// for Llama 3.2, and float64, for heads that turn in whole or in part, in halves or in pairs.
#include "ops/rope/rope.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

struct Turn {
  std::uint32_t head_dim;
  std::uint32_t rotary_dim;
  bool interleaved;
  float scale;  // of cosines and sines
  bool head_scaled;
};

void check_turn(const Turn& turn) {
  CAPTURE(turn.head_dim);
  CAPTURE(turn.rotary_dim);
  CAPTURE(turn.interleaved);
  Random random(1);
  const std::uint32_t dim = turn.head_dim;
  const std::uint32_t half = turn.rotary_dim / 2;
  const std::uint32_t heads = 5;
  const std::size_t stride = heads * dim + 10;
  const std::uint32_t tokens = 300;
  std::vector<float> inv_freq(half);
  for (std::uint32_t i = 0; i < half; ++i) {
    inv_freq[i] = std::pow(10000.0F, -static_cast<float>(i) / static_cast<float>(half));
  }
  std::vector<std::uint32_t> positions;
  for (std::uint32_t t = 0; t < tokens; ++t) positions.push_back(random.integer(0, 2000));
  const auto x = random.normals(tokens * stride);
  const auto head_scale = random.normals(tokens);
  for (const std::uint32_t num_threads : {1U, 3U}) {
    Device device(Isa::Portable, num_threads);
    std::vector<float> cos_sin(std::size_t{tokens} * 2 * half);
    rope_angles(device.context(), {inv_freq, turn.scale, positions, cos_sin.data()});
    std::vector<float> turned(x);
    rope(device.context(),
         {turned.data(), stride, cos_sin.data(), tokens, heads, dim, turn.rotary_dim,
          turn.interleaved, turn.head_scaled ? head_scale.data() : nullptr});
    for (std::size_t t = 0; t < tokens; ++t) {
      const double factor = turn.head_scaled ? head_scale[t] : 1.0F;
      std::vector<double> expected(x.begin() + t * stride, x.begin() + (t + 1) * stride);
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t i = 0; i < half; ++i) {
          const double angle = static_cast<float>(positions[t]) * inv_freq[i];
          const std::size_t first = h * dim + (turn.interleaved ? 2 * i : i);
          const std::size_t second = turn.interleaved ? first + 1 : first + half;
          const double a = expected[first] * turn.scale;
          const double b = expected[second] * turn.scale;
          expected[first] = a * std::cos(angle) - b * std::sin(angle);
          expected[second] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
      for (std::size_t i = 0; i < heads * dim; ++i) {
        REQUIRE(std::abs(turned[t * stride + i] - expected[i] * factor) < 2e-6);
      }
      for (std::size_t i = heads * dim; i < stride; ++i) {
        REQUIRE(turned[t * stride + i] == x[t * stride + i]);
      }
    }
  }
}

}  // namespace

TEST_CASE("heads turn in halves or pairs, whole or in part, and the rest of the row is left") {
  for (const bool interleaved : {false, true}) {
    for (const bool head_scaled : {false, true}) {
      check_turn({12, 12, interleaved, 1.0F, head_scaled});
      check_turn({64, 16, interleaved, 1.0F, head_scaled});
      check_turn({80, 32, interleaved, 1.3465736F, head_scaled});  // YaRN of factor 32
      check_turn({16, 0, interleaved, 1.0F, head_scaled});
    }
  }
}

TEST_CASE("a rotary_dim that is odd or above head_dim is refused") {
  Device device(Isa::Portable, 1);
  std::vector<float> x(16), cos_sin(16);
  const auto run = [&](std::uint32_t head_dim, std::uint32_t rotary_dim) {
    rope(device.context(), {x.data(), 16, cos_sin.data(), 1, 1, head_dim, rotary_dim});
  };
  CHECK_THROWS_AS(run(16, 15), std::invalid_argument);
  CHECK_THROWS_AS(run(8, 16), std::invalid_argument);
}

}  // namespace inferno::ops::test
