// Goal: every head is normed by itself and nothing else is touched. Method: float64, and the bits
// of rms_norm for any number of threads.
#include "ops/head_norm/head_norm.h"

#include "ops/base/test_support.h"
#include "ops/rms_norm/rms_norm.h"

namespace inferno::ops::test {

namespace {

struct Rows {
  std::uint32_t num_tokens;
  std::uint32_t num_heads;
  std::uint32_t width;
  bool weighted;
};

void check_rows(const Rows& rows) {
  CAPTURE(rows.num_heads);
  CAPTURE(rows.width);
  CAPTURE(rows.weighted);
  const auto [num_tokens, num_heads, width, weighted] = rows;
  Random random(1);
  const std::size_t stride = std::size_t{num_heads} * width + 11;
  const auto x = random.normals(num_tokens * stride);
  const auto weight = random.normals(width);
  const float* used = weighted ? weight.data() : nullptr;
  for (std::uint32_t num_threads = 1; num_threads <= 3; ++num_threads) {
    Device device(Isa::Portable, num_threads);
    std::vector<float> out(x);
    head_norm(device.context(), {out.data(), stride, used, 1e-5F, num_tokens, num_heads, width});
    for (std::size_t t = 0; t < num_tokens; ++t) {
      for (std::size_t h = 0; h < num_heads; ++h) {
        const std::size_t at = t * stride + h * width;
        std::vector<float> alone(width);
        rms_norm(device.context(), {x.data() + at, used, 1e-5F, 1, width, alone.data()});
        REQUIRE(same_bits(alone, std::span(out).subspan(at, width)));
        double squares = 0.0;
        for (std::size_t i = 0; i < width; ++i) squares += double{x[at + i]} * x[at + i];
        const double scale = 1.0 / std::sqrt(squares / width + 1e-5);
        for (std::size_t i = 0; i < width; ++i) {
          const double expected = x[at + i] * scale * (weighted ? weight[i] : 1.0F);
          REQUIRE(std::abs(out[at + i] - expected) <= 1e-6 * std::abs(expected));
        }
      }
      for (std::size_t i = stride - 11; i < stride; ++i) {
        REQUIRE(out[t * stride + i] == x[t * stride + i]);
      }
    }
  }
}

}  // namespace

TEST_CASE("head_norm norms each head alone, with and without a weight") {
  for (const bool weighted : {true, false}) {
    check_rows({300, 5, 64, weighted});
    check_rows({7, 3, 17, weighted});
    check_rows({19, 1, 2048, weighted});  // a whole row
    check_rows({2, 40, 1, weighted});
    check_rows({0, 4, 64, weighted});
  }
}

}  // namespace inferno::ops::test
