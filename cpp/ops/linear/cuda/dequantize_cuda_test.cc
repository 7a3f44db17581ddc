// Goal: rows of a quantized matrix become the elements that they stand for. Method: random codes of
// every format, a part of their rows, against their weights in float.
#include "ops/linear/cuda/dequantize_cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "ops/cuda/cuda_test_support.h"
#include "ops/linear/cuda/code_layout_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::Random;

double rounding(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1p-8 : 0x1p-11; }

TEST_CASE("dequantized rows are the weights, rounded") {
  const TestDevice device;
  Random random(fresh_seed());
  for (const WeightFormat& format : kCodeFormats) {
    CAPTURE(std::string(weight_kind_name(format.kind)));
    for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
      const WeightShape shape{75, 328, format};
      std::vector<float> weights;
      const DeviceBuffer<std::byte> matrix(random_codes(shape, random, weights));
      DeviceBuffer<std::uint16_t> rows(std::size_t{51} * 328);
      dequantize_cuda(device.op(), {.weight = {matrix.data(), 75, 328, format},
                                    .first_row = 24,
                                    .num_rows = 51,
                                    .dtype = dtype,
                                    .out = rows.data()});
      device.wait();
      const std::vector<float> got = to_floats(rows.to_host(), dtype);
      CHECK(rows.guards_are_whole());
      for (std::size_t i = 0; i < got.size(); ++i) {
        const float weight = weights[24 * 328 + i];
        REQUIRE(std::abs(got[i] - weight) <= rounding(dtype) * std::abs(weight) + 1e-7);
      }
    }
  }
}

}  // namespace
}  // namespace inferno::ops::cuda::test
