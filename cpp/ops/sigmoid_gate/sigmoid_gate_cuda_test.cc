// Goal: gates on the GPU let through what the formula says, one for each element or for many.
// Method: float64 on the same rounded inputs, within one rounding of an element, gates far out too;
// guards.
#include "ops/sigmoid_gate/sigmoid_gate_cuda.h"

#include <limits>
#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

std::vector<std::uint16_t> run(const TestDevice& device, const std::vector<std::uint16_t>& gates,
                               const std::vector<std::uint16_t>& x, SigmoidGateCudaArgs args) {
  const DeviceBuffer<std::uint16_t> gates_cuda(gates);
  const DeviceBuffer<std::uint16_t> x_cuda(x);
  args.gates = gates_cuda.data();
  args.x = x_cuda.data();
  sigmoid_gate_cuda(device.op(), args);
  CHECK(x_cuda.guards_are_whole());
  CHECK(gates_cuda.to_host() == gates);
  return x_cuda.to_host();
}

TEST_CASE("sigmoid_gate_cuda agrees with float64, the extremes too") {
  TestDevice device;
  Random random(fresh_seed());
  for (const auto& [num_gates, width] : {std::pair{8U, 1U},
                                         {2048U, 1U},
                                         {4104U, 1U},
                                         {1U, 8U},
                                         {1U, 1408U},
                                         {16U, 128U},
                                         {3U, 72U}}) {
    CAPTURE(num_gates);
    CAPTURE(width);
    for (const Dtype dtype : kElements) {
      const std::uint32_t tokens = random.integer(1, 33);
      auto values = random.normals(std::size_t{tokens} * num_gates);
      for (std::size_t i = 0; i < values.size(); i += 3) values[i] *= 20;
      values[0] = -200;
      const auto gates = to_elements(values, dtype);
      const auto x = to_elements(random.normals(values.size() * width), dtype);
      const auto gates_in = to_floats(gates, dtype);
      const auto x_in = to_floats(x, dtype);
      const auto got = to_floats(
          run(device, gates, x,
              {.num_tokens = tokens, .num_gates = num_gates, .width = width, .dtype = dtype}),
          dtype);
      for (std::size_t i = 0; i < got.size(); ++i) {
        const double expected = x_in[i] / (1 + std::exp(-double{gates_in[i / width]}));
        REQUIRE(near(got[i], expected, dtype));
      }
    }
  }
}

TEST_CASE("sigmoid_gate_cuda keeps a NaN") {
  TestDevice device;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> gates(8, 1.0F);
  std::vector<float> x(8, 1.0F);
  gates[1] = nan;
  x[5] = nan;
  const auto got = to_floats(run(device, to_elements(gates, Dtype::BF16),
                                 to_elements(x, Dtype::BF16), {.num_tokens = 1, .num_gates = 8}),
                             Dtype::BF16);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i == 1 || i == 5));
}

TEST_CASE("sigmoid_gate_cuda refuses widths that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(sigmoid_gate_cuda(op, {.num_tokens = 1, .num_gates = 12}), std::invalid_argument);
  CHECK_THROWS_AS(sigmoid_gate_cuda(op, {.num_tokens = 1, .num_gates = 8, .width = 12}),
                  std::invalid_argument);
  CHECK_THROWS_AS(sigmoid_gate_cuda(op, {.num_tokens = 1, .num_gates = 8, .dtype = Dtype::F32}),
                  std::invalid_argument);
  sigmoid_gate_cuda(op, {.num_gates = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
