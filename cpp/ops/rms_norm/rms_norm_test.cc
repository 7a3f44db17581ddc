// Goal: the norm is right and a row's bits are its own. Method: float64, and rows alone against
// batches.
#include "ops/rms_norm/rms_norm.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("rms_norm agrees with float64, with and without a weight") {
  Device device(Isa::Portable, 2);
  Random random(1);
  for (const std::uint32_t hidden : {1U, 15U, 16U, 100U, 2048U}) {
    const std::uint32_t tokens = 19;
    const auto x = random.normals(std::size_t{tokens} * hidden);
    const auto weight = random.normals(hidden);
    for (const float* used : {weight.data(), static_cast<const float*>(nullptr)}) {
      Output out(std::size_t{tokens} * hidden);
      rms_norm(device.context(), {x.data(), used, 1e-5F, tokens, hidden, out.data()});
      for (std::size_t t = 0; t < tokens; ++t) {
        double squares = 0.0;
        for (std::size_t i = 0; i < hidden; ++i) {
          squares += std::pow(double{x[t * hidden + i]}, 2);
        }
        const double scale = 1.0 / std::sqrt(squares / hidden + 1e-5);
        for (std::size_t i = 0; i < hidden; ++i) {
          const double expected = x[t * hidden + i] * scale * (used ? used[i] : 1.0F);
          REQUIRE(std::abs(out.span()[t * hidden + i] - expected) <= 1e-6 * std::abs(expected));
        }
      }
      CHECK(out.guards_are_whole());
    }
  }
}

TEST_CASE("a row has the bits of the row alone, for any batch and threads, in place too") {
  Random random(2);
  const std::uint32_t hidden = 530;
  const std::uint32_t tokens = 70;
  const auto x = random.normals(std::size_t{tokens} * hidden);
  const auto weight = random.normals(hidden);
  Device single(Isa::Portable, 1);
  std::vector<float> expected(x.size());
  for (std::uint32_t t = 0; t < tokens; ++t) {
    const std::size_t at = std::size_t{t} * hidden;
    rms_norm(single.context(),
             {x.data() + at, weight.data(), 1e-6F, 1, hidden, expected.data() + at});
  }
  for (std::uint32_t num_threads = 1; num_threads <= 4; ++num_threads) {
    Device device(Isa::Portable, num_threads);
    std::vector<float> out(x);
    rms_norm(device.context(), {out.data(), weight.data(), 1e-6F, tokens, hidden, out.data()});
    CHECK(same_bits(out, expected));
  }
}

}  // namespace inferno::ops::test
