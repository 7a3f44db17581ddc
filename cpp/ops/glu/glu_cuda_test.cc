// Goal: gated linear units on the GPU are right for every activation, far out too. Method: float64
// on the same rounded inputs, within one rounding of an element; poisoned outputs between guards.
#include "ops/glu/glu_cuda.h"

#include <limits>
#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"
#include "ops/glu/glu_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

constexpr Activation kActivations[] = {{},
                                       {.kind = ActivationKind::GeluTanh},
                                       {ActivationKind::ClampedSilu, 1.702F, 7.0F},
                                       {ActivationKind::ClampedSilu, 0.5F, 3.0F}};

std::vector<std::uint16_t> run(const TestDevice& device, const std::vector<std::uint16_t>& gate_up,
                               GluCudaArgs args) {
  const DeviceBuffer<std::uint16_t> gate_up_cuda(gate_up);
  const DeviceBuffer<std::uint16_t> out(gate_up.size() / 2);
  args.gate_up = gate_up_cuda.data();
  args.out = out.data();
  glu_cuda(device.op(), args);
  CHECK(out.guards_are_whole());
  return out.to_host();
}

TEST_CASE("glu_cuda agrees with float64, the extremes too") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Activation& activation : kActivations) {
    CAPTURE(static_cast<int>(activation.kind));
    for (const std::uint32_t size : {8U, 56U, 8192U, 11008U, 14336U}) {
      for (const Dtype dtype : kElements) {
        const std::uint32_t tokens = random.integer(1, 33);
        auto values = random.normals(std::size_t{tokens} * 2 * size);
        for (std::size_t i = 0; i < values.size(); i += 3) values[i] *= 20;
        values[0] = 200;
        values[1] = -200;
        values[2] = 0;
        const auto gate_up = to_elements(values, dtype);
        const auto inputs = to_floats(gate_up, dtype);
        const auto got = to_floats(run(device, gate_up,
                                       {.num_tokens = tokens,
                                        .intermediate_size = size,
                                        .activation = activation,
                                        .dtype = dtype}),
                                   dtype);
        for (std::size_t i = 0; i < got.size(); ++i) {
          const std::size_t gate_at = i / size * 2 * size + i % size;
          const double up = inputs[gate_at + size];
          // Of ClampedSilu's sum up + 1.
          const double magnitude = 1 + std::abs(inputs[gate_at]);
          const double expected = ops::test::activated(activation, inputs[gate_at], up);
          REQUIRE(near(got[i], expected, magnitude + std::abs(expected), dtype));
        }
      }
    }
  }
}

TEST_CASE("glu_cuda keeps a NaN") {
  TestDevice device;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Activation& activation : kActivations) {
    std::vector<float> values(16, 1.0F);
    values[1] = nan;      // a gate
    values[8 + 5] = nan;  // an up
    const auto got =
        to_floats(run(device, to_elements(values, Dtype::BF16),
                      {.num_tokens = 1, .intermediate_size = 8, .activation = activation}),
                  Dtype::BF16);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i == 1 || i == 5));
  }
}

TEST_CASE("glu_cuda refuses widths that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(glu_cuda(op, {.num_tokens = 1, .intermediate_size = 12}), std::invalid_argument);
  CHECK_THROWS_AS(glu_cuda(op, {.num_tokens = 1, .intermediate_size = 8, .dtype = Dtype::F32}),
                  std::invalid_argument);
  glu_cuda(op, {.intermediate_size = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
