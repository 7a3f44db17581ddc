// Goal: random weights of a quantized matrix are numbers of the deviation that was asked for, the
// same for the same key. Method: read back by dequantize_cuda, for every format.
#include "ops/random_fill/random_codes_cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "ops/cuda/cuda_test_support.h"
#include "ops/linear/cuda/code_layout_fixture.h"
#include "ops/linear/cuda/dequantize_cuda.h"

namespace inferno::ops::cuda::test {
namespace {

constexpr std::uint32_t kRows = 203;
constexpr std::uint32_t kColumns = 1032;

std::vector<float> random_weights(const TestDevice& device, const WeightFormat& format,
                                  std::uint64_t key) {
  const WeightShape shape{kRows, kColumns, format};
  const DeviceBuffer<std::byte> matrix(CodeLayout(shape).bytes);
  random_codes_cuda(device.op(),
                    {.matrix = shape, .key = key, .deviation = 0.02F, .out = matrix.data()});
  const DeviceBuffer<std::uint16_t> rows(std::size_t{kRows} * kColumns);
  dequantize_cuda(device.op(), {.weight = {matrix.data(), kRows, kColumns, format},
                                .num_rows = kRows,
                                .dtype = Dtype::BF16,
                                .out = rows.data()});
  device.wait();
  CHECK(matrix.guards_are_whole());
  return to_floats(rows.to_host(), Dtype::BF16);
}

TEST_CASE("random_codes_cuda has the deviation asked for, and repeats itself by key") {
  const TestDevice device;
  for (const WeightFormat& format : kCodeFormats) {
    CAPTURE(std::string(weight_kind_name(format.kind)));
    const std::vector<float> weights = random_weights(device, format, 5);
    double squares = 0;
    for (const float weight : weights) squares += double{weight} * weight;
    const double deviation = std::sqrt(squares / static_cast<double>(weights.size()));
    CHECK(std::abs(deviation - 0.02) < 0.0004);
    CHECK(random_weights(device, format, 5) == weights);
    CHECK(random_weights(device, format, 6) != weights);
  }
}

}  // namespace
}  // namespace inferno::ops::cuda::test
