// Goal: inputs become the codes and scales that they should, in the order of the matrix's columns.
// Method: random rows against the same in plain code, codes bit by bit.
#include "ops/linear/cuda/quantize_inputs_cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "ops/linear/cuda/code_layout_fixture.h"
#include "ops/linear/cuda/linear_cuda_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

struct Coded {
  std::vector<std::uint8_t> codes;  // [T, spans * 128]
  std::vector<float> scales;        // [T]
};

Coded quantized(const std::vector<float>& h, std::uint32_t num_columns, Dtype dtype,
                const std::vector<float>& sums) {
  const TestDevice device;
  const auto rows = static_cast<std::uint32_t>(h.size() / num_columns);
  const std::size_t width = (num_columns + kSpanColumns - 1) / kSpanColumns * kSpanColumns;
  const DeviceBuffer<std::uint16_t> in(to_elements(h, dtype));
  const DeviceBuffer<float> square_sums(sums);
  DeviceBuffer<std::uint8_t> codes(rows * width);
  DeviceBuffer<float> scales(rows);
  quantize_inputs_cuda(device.op(),
                       {.in = {.h = in.data(),
                               .num_tokens = rows,
                               .square_sums = sums.empty() ? nullptr : square_sums.data(),
                               .eps = kEps,
                               .dtype = dtype},
                        .num_columns = num_columns,
                        .codes = codes.data(),
                        .scales = scales.data()});
  device.wait();
  CHECK(codes.guards_are_whole());
  CHECK(scales.guards_are_whole());
  return {codes.to_host(), scales.to_host()};
}

// A row's codes as a matrix would have them: an order of columns is one of both.
std::vector<std::uint8_t> in_matrix_order(const float* row, std::uint32_t num_columns,
                                          float inverse) {
  const WeightShape shape{1, num_columns, WeightKind::Fp8};
  std::vector<std::uint8_t> codes;
  for (std::uint32_t k = 0; k < num_columns; ++k) codes.push_back(f32_to_e4m3(row[k] * inverse));
  const float one = 1;
  const auto bytes =
      packed(shape, {reinterpret_cast<const std::byte*>(codes.data()), WeightKind::Fp8, 1, &one});
  const std::size_t width = CodeLayout(shape).num_spans * std::size_t{kSpanColumns};
  const auto* first = reinterpret_cast<const std::uint8_t*>(bytes.data());
  return {first, first + width};
}

void check_rows(std::uint32_t num_columns, Dtype dtype, bool deferred) {
  CAPTURE(num_columns);
  constexpr std::uint32_t kRows = 5;
  Random random(fresh_seed());
  std::vector<float> h = rounded_all(random.normals(std::size_t{kRows} * num_columns), 1, dtype);
  std::fill(h.begin() + num_columns, h.begin() + 2 * num_columns, 0.0F);
  std::vector<float> sums = random.normals(deferred ? kRows * norm_parts(num_columns) : 0);
  Problem::squared(sums, num_columns);
  const Coded got = quantized(h, num_columns, dtype, sums);
  const std::size_t width = got.codes.size() / kRows;
  for (std::uint32_t t = 0; t < kRows; ++t) {
    const float* row = h.data() + std::size_t{t} * num_columns;
    float largest = 0;
    for (std::uint32_t k = 0; k < num_columns; ++k) largest = std::max(largest, std::abs(row[k]));
    double squares = 0;
    for (std::size_t i = 0; i < sums.size() / kRows; ++i) {
      squares += sums[t * sums.size() / kRows + i];
    }
    const double norm = deferred ? 1 / std::sqrt(squares / num_columns + kEps) : 1.0;
    const double scale = largest / kE4m3Max * norm;
    CHECK(std::abs(got.scales[t] - scale) <= 1e-5 * scale);
    const float inverse = std::min(kE4m3Max / largest, std::numeric_limits<float>::max());
    const std::vector<std::uint8_t> own(got.codes.begin() + t * width,
                                        got.codes.begin() + (t + 1) * width);
    CHECK(own == in_matrix_order(row, num_columns, inverse));
  }
}

TEST_CASE("inputs become codes in the order of the matrix's columns") {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const bool deferred : {false, true}) {
      check_rows(8, dtype, deferred);
      check_rows(328, dtype, deferred);
      check_rows(4096, dtype, deferred);
      check_rows(20008, dtype, deferred);
    }
  }
}

TEST_CASE("an input that is no number stays none, and the smallest stay numbers") {
  std::vector<float> h(32, 1.0F);
  h[3] = std::numeric_limits<float>::quiet_NaN();
  std::fill(h.begin() + 16, h.end(), 0x1p-133F);
  h[20] = 0;
  const Coded got = quantized(h, 16, Dtype::BF16, {});
  std::uint32_t nans = 0;
  for (std::size_t i = 0; i < kSpanColumns; ++i) nans += (got.codes[i] & 0x7fU) == 0x7fU;
  CHECK(nans == 1);
  for (std::size_t i = kSpanColumns; i < 2 * kSpanColumns; ++i) {
    CHECK((got.codes[i] & 0x7fU) != 0x7fU);
  }
}

}  // namespace
}  // namespace inferno::ops::cuda::test
