// Goal: the GPU's norm is right for every width, and a row's bits never depend on its company.
// Method: the CPU's norm on the same inputs, within one rounding of an element, and float64 where
// there is no weight; poisoned outputs between guards; the same rows alone and in a batch.
#include "ops/rms_norm/rms_norm_cuda.h"

#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"
#include "ops/rms_norm/rms_norm.h"

namespace inferno::ops::cuda::test {
namespace {

std::vector<float> cpu_norm(std::span<const float> x, std::span<const float> weight) {
  ops::test::Device cpu(Isa::Portable, 1);
  const auto hidden = static_cast<std::uint32_t>(weight.size());
  std::vector<float> out(x.size());
  rms_norm(cpu.context(), {x.data(), weight.data(), kNormEps,
                           static_cast<std::uint32_t>(x.size() / hidden), hidden, out.data()});
  return out;
}

TEST_CASE("rms_norm_cuda rounds what the CPU's norm gives, for chosen rows") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t hidden : {8U, 72U, 2048U, 4096U, 8192U, 8200U, 16384U}) {
    for (const Dtype dtype : kElements) {
      CAPTURE(hidden);
      const std::uint32_t tokens = random.integer(1, 40);
      const auto x = random.normals(std::size_t{50} * hidden);
      const auto weight = random.normals(hidden);
      const auto expected = cpu_norm(x, weight);
      auto rows = integers(random, tokens, 49);
      for (const bool all : {true, false}) {
        const DeviceBuffer<float> x_cuda(x);
        const DeviceBuffer<float> weight_cuda(weight);
        const DeviceBuffer<std::uint32_t> rows_cuda(rows);
        const DeviceBuffer<std::uint16_t> out(std::size_t{tokens} * hidden);
        rms_norm_cuda(device.op(),
                      {x_cuda.data(), all ? nullptr : rows_cuda.data(), weight_cuda.data(),
                       kNormEps, tokens, hidden, dtype, out.data()});
        const auto values = to_floats(out.to_host(), dtype);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const std::size_t row = all ? i / hidden : rows[i / hidden];
          REQUIRE(near(values[i], expected[row * hidden + i % hidden], dtype));
        }
        CHECK(out.guards_are_whole());
      }
    }
  }
}

TEST_CASE("rms_norm_cuda without a weight agrees with float64") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t hidden : {40U, 4096U, 12288U}) {
    for (const Dtype dtype : kElements) {
      const auto x = random.normals(std::size_t{3} * hidden);
      const auto expected = norm_of(x, std::vector<float>(hidden, 1.0F), kNormEps);
      const DeviceBuffer<float> x_cuda(x);
      const DeviceBuffer<std::uint16_t> out(x.size());
      rms_norm_cuda(device.op(), {.x = x_cuda.data(),
                                  .eps = kNormEps,
                                  .num_tokens = 3,
                                  .hidden_size = hidden,
                                  .dtype = dtype,
                                  .out = out.data()});
      const auto values = to_floats(out.to_host(), dtype);
      for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(near(values[i], expected[i], dtype));
    }
  }
}

TEST_CASE("a row's norm has the same bits alone and in a batch") {
  TestDevice device;
  Random random(fresh_seed());
  const std::uint32_t hidden = 4096;
  const std::uint32_t tokens = 300;
  const DeviceBuffer<float> x(random.normals(std::size_t{tokens} * hidden));
  const DeviceBuffer<float> weight(random.normals(hidden));
  const DeviceBuffer<std::uint16_t> all(std::size_t{tokens} * hidden);
  RmsNormCudaArgs args{x.data(), nullptr, weight.data(), 1e-6F,
                       tokens,   hidden,  Dtype::BF16,   all.data()};
  rms_norm_cuda(device.op(), args);
  const auto batch = all.to_host();
  for (const std::uint32_t token : {0U, 131U, 299U}) {
    const DeviceBuffer<std::uint16_t> alone(hidden);
    args.x = x.data() + std::size_t{token} * hidden;
    args.num_tokens = 1;
    args.out = alone.data();
    rms_norm_cuda(device.op(), args);
    const auto row = alone.to_host();
    CHECK(std::equal(row.begin(), row.end(), batch.begin() + std::ptrdiff_t{token} * hidden));
  }
}

TEST_CASE("rms_norm_cuda refuses widths and elements that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(rms_norm_cuda(op, {.num_tokens = 1, .hidden_size = 12}), std::invalid_argument);
  CHECK_THROWS_AS(rms_norm_cuda(op, {.num_tokens = 1, .hidden_size = 16392}),
                  std::invalid_argument);
  CHECK_THROWS_AS(rms_norm_cuda(op, {.num_tokens = 1, .hidden_size = 8, .dtype = Dtype::F32}),
                  std::invalid_argument);
  rms_norm_cuda(op, {.hidden_size = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
