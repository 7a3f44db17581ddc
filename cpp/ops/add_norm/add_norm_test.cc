// Goal: a branch joins the stream by the formula. Method: float64, with and without norm, weight
// and scale; rows alone against batches.
#include "ops/add_norm/add_norm.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("add_norm agrees with float64, and a row has its own bits") {
  Random random(3);
  const std::uint32_t hidden = 130;
  const std::uint32_t tokens = 9;
  const auto branch = random.normals(std::size_t{tokens} * hidden);
  const auto stream = random.normals(std::size_t{tokens} * hidden);
  const auto weight = random.normals(hidden);
  for (const bool normalise : {false, true}) {
    for (const float* used : {static_cast<const float*>(nullptr), weight.data()}) {
      for (const float scale : {1.0F, 0.22F}) {
        Device device(Isa::Portable, 3);
        std::vector<float> y(branch);
        std::vector<float> x(stream);
        add_norm(device.context(),
                 {y.data(), normalise, used, 1e-6F, scale, tokens, hidden, x.data()});
        for (std::size_t t = 0; t < tokens; ++t) {
          double squares = 0;
          for (std::size_t i = 0; i < hidden; ++i) {
            squares += std::pow(double{branch[t * hidden + i]}, 2);
          }
          const double norm = normalise ? 1 / std::sqrt(squares / hidden + 1e-6) : 1;
          for (std::size_t i = 0; i < hidden; ++i) {
            const double w = normalise && used != nullptr ? used[i] : 1;
            const double expected =
                stream[t * hidden + i] + scale * (branch[t * hidden + i] * norm * w);
            REQUIRE(std::abs(x[t * hidden + i] - expected) <= 1e-5);
          }
        }
        std::vector<float> one(branch.begin() + hidden, branch.begin() + 2 * hidden);
        std::vector<float> alone(stream.begin() + hidden, stream.begin() + 2 * hidden);
        add_norm(device.context(),
                 {one.data(), normalise, used, 1e-6F, scale, 1, hidden, alone.data()});
        CHECK(same_bits(alone, std::vector<float>(x.begin() + hidden, x.begin() + 2 * hidden)));
      }
    }
  }
}

}  // namespace inferno::ops::test
