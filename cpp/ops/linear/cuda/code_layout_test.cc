// Goal: the layout keeps what codes mean where the kernels' arithmetic would not, quantizes
// elements, and takes whole strips only. Method: rows of one group, read back by dequantize_cuda.
#include "ops/linear/cuda/code_layout.h"

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "ops/cuda/cuda_test_support.h"
#include "ops/linear/cuda/code_layout_fixture.h"
#include "ops/linear/cuda/dequantize_cuda.h"

namespace inferno::ops::cuda::test {
namespace {

// What the layout keeps of a row, by the weights that come back.
std::vector<float> dequantized(const WeightShape& shape, const RowSource& source) {
  const TestDevice device;
  const DeviceBuffer<std::byte> matrix(packed(shape, source));
  DeviceBuffer<std::uint16_t> rows(std::size_t{shape.num_rows} * shape.num_columns);
  dequantize_cuda(device.op(),
                  {.weight = {matrix.data(), shape.num_rows, shape.num_columns, shape.format},
                   .num_rows = shape.num_rows,
                   .dtype = Dtype::BF16,
                   .out = rows.data()});
  device.wait();
  return to_floats(rows.to_host(), Dtype::BF16);
}

TEST_CASE("a code that is no number, and a scale of 0 beside an offset, keep their meaning") {
  const std::vector<std::byte> codes(8, std::byte{0x7f});
  const float scale = 0;
  const float offset = -0.75F;
  const auto nan = dequantized({1, 8, WeightKind::Fp8}, {codes.data(), WeightKind::Fp8, 1, &scale});
  CHECK(std::isnan(nan[0]));
  const WeightFormat int4{WeightKind::Int4, 128, true};
  const auto constant = dequantized({1, 16, int4}, {codes.data(), int4, 1, &scale, &offset});
  for (const float weight : constant) CHECK(weight == 0.75F);
}

TEST_CASE("elements for a quantized matrix are quantized") {
  const std::vector<float> values = {1, -2, 3, -4, 5, -6, 7, 0};
  const auto elements = ops::test::encode(values, Dtype::BF16);
  const auto got = dequantized({1, 8, WeightKind::Int8}, {elements.data(), Dtype::BF16, 1});
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(std::abs(got[i] - values[i]) < 0.06F);
}

TEST_CASE("refuses strips that are not whole, and formats without a kernel") {
  const WeightShape shape{20, 8, WeightKind::Int8};
  const RowSource source{nullptr, WeightKind::Int8, 8};
  CHECK_THROWS_AS(check_strips(shape, 4, source), std::invalid_argument);
  CHECK_THROWS_AS(check_strips(shape, 16, source), std::invalid_argument);
  CHECK_THROWS_AS(check_strips(shape, 0, {nullptr, WeightKind::Fp8, 8}), std::invalid_argument);
  check_strips(shape, 8, source);
  check_strips(shape, 16, {nullptr, WeightKind::Int8, 4});
  CHECK(!has_code_layout({WeightKind::Int4, 16}));
  CHECK(!has_code_layout({WeightKind::Fp8, 64}));
}

}  // namespace
}  // namespace inferno::ops::cuda::test
