// Goal: capped and scaled logits are right, at the end of an odd number too. Method: float64,
// within 2^-21 of the value; guards; a NaN stays one.
#include "ops/softcap/softcap_cuda.h"

#include <limits>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

TEST_CASE("softcap_cuda agrees with float64 for any number of logits") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::size_t count : {1U, 2U, 3U, 4U, 1023U, 1025U, 256'000U, 384'001U}) {
    for (const float cap : {0.0F, 20.0F, 30.0F}) {
      for (const float scale : {1.0F, 0.196F}) {
        CAPTURE(count);
        CAPTURE(cap);
        auto logits = random.normals(count);
        for (std::size_t i = 0; i < count; i += 2) logits[i] *= 50;
        const DeviceBuffer<float> logits_cuda(logits);
        softcap_cuda(device.op(),
                     {.logits = logits_cuda.data(), .count = count, .scale = scale, .cap = cap});
        const auto got = logits_cuda.to_host();
        for (std::size_t i = 0; i < count; ++i) {
          const double scaled = double{scale} * logits[i];
          const double expected = cap == 0 ? scaled : cap * std::tanh(scaled / cap);
          REQUIRE(std::abs(got[i] - expected) <= 0x1p-21 * std::abs(expected));
        }
        CHECK(logits_cuda.guards_are_whole());
      }
    }
  }
}

TEST_CASE("softcap_cuda keeps what is no number, and no logits are no work") {
  TestDevice device;
  const float infinity = std::numeric_limits<float>::infinity();
  const DeviceBuffer<float> logits(
      std::vector<float>{std::numeric_limits<float>::quiet_NaN(), infinity, -infinity});
  softcap_cuda(device.op(), {.logits = logits.data(), .count = 3, .cap = 30});
  const auto got = logits.to_host();
  CHECK(std::isnan(got[0]));
  CHECK(got[1] == 30.0F);
  CHECK(got[2] == -30.0F);
  softcap_cuda(device.op(), {});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
