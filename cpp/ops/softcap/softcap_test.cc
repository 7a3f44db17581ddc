// Goal: logits are scaled and capped, however small or large, and each by itself. Method: float64
// over the whole axis, with an error relative to the value; extremes; other threads and places.
#include "ops/softcap/softcap.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

std::vector<float> capped(Isa isa, std::uint32_t num_threads, std::vector<float> logits,
                          float scale, float cap) {
  Device device(isa, num_threads);
  softcap(device.context(), {logits.data(), logits.size(), scale, cap});
  return logits;
}

}  // namespace

TEST_CASE("capped logits agree with float64 from the smallest to the largest") {
  for_each_isa([](Isa isa) {
    for (const float cap : {30.0F, 50.0F, 1.0F}) {
      for (const float scale : {1.0F, 0.0625F}) {
        std::vector<float> logits;
        for (double magnitude = 1e-6; magnitude < 1e6; magnitude *= 1.0007) {
          logits.push_back(static_cast<float>(magnitude));
          logits.push_back(static_cast<float>(-magnitude));
        }
        const auto out = capped(isa, 2, logits, scale, cap);
        for (std::size_t i = 0; i < logits.size(); ++i) {
          const double expected = cap * std::tanh(double{scale} * logits[i] / cap);
          REQUIRE(std::abs(out[i] - expected) <= 4e-7 * std::abs(expected));
        }
      }
    }
  });
}

TEST_CASE("without a cap logits are scaled only") {
  for_each_isa([](Isa isa) {
    const auto logits = Random(1).normals(20000);
    CHECK(same_bits(capped(isa, 2, logits, 1.0F, 0.0F), logits));
    const auto out = capped(isa, 2, logits, 0.3F, 0.0F);
    for (std::size_t i = 0; i < logits.size(); ++i) REQUIRE(out[i] == logits[i] * 0.3F);
  });
}

TEST_CASE("infinities meet the cap, zeros stay and a NaN stays one") {
  for_each_isa([](Isa isa) {
    const float infinity = std::numeric_limits<float>::infinity();
    const auto out = capped(isa, 1, {infinity, -infinity, 0.0F, kPoison, 1e38F}, 2.0F, 30.0F);
    CHECK(out[0] == 30.0F);
    CHECK(out[1] == -30.0F);
    CHECK(out[2] == 0.0F);
    CHECK(std::isnan(out[3]));
    CHECK(out[4] == 30.0F);
  });
}

TEST_CASE("a logit has the same bits in any place and for any threads") {
  for_each_isa([](Isa isa) {
    const auto logits = Random(3).normals(30001);
    const auto whole = capped(isa, 1, logits, 1.0F, 2.0F);
    CHECK(same_bits(capped(isa, 3, logits, 1.0F, 2.0F), whole));
    for (const std::size_t begin : {1U, 5U, 29990U}) {
      const std::vector<float> part(logits.begin() + begin, logits.end());
      CHECK(same_bits(capped(isa, 2, part, 1.0F, 2.0F), std::span(whole).subspan(begin)));
    }
  });
}

}  // namespace inferno::ops::test
