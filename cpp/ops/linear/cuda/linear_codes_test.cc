// Goal: products with quantized matrices on the GPU are right for every format, shape and epilogue.
// Method: random codes, scales and offsets; the same checks against float64 as of other products,
// with the weights that these stand for.
#include <doctest/doctest.h>

#include <stdexcept>

#include "ops/linear/cuda/dequantize_cuda.h"
#include "ops/linear/cuda/linear_cuda_checks.h"

namespace inferno::ops::cuda::test {
namespace {

constexpr WeightFormat kFormats[] = {{WeightKind::Fp8},
                                     {WeightKind::Fp8, 128},
                                     {WeightKind::Int8},
                                     {WeightKind::Int8, 128, true},
                                     {WeightKind::Int4},
                                     {WeightKind::Int4, 128},
                                     {WeightKind::Int4, 64},
                                     {WeightKind::Int4, 32},
                                     {WeightKind::Int4, 0, true},
                                     {WeightKind::Int4, 128, true},
                                     {WeightKind::Int4, 32, true},
                                     {WeightKind::Mxfp4, 32}};

constexpr Epilogue kEpilogues[] = {Epilogue::Store, Epilogue::StoreFloat, Epilogue::Add,
                                   Epilogue::Gate};

// Every format, epilogue and type of activations; bias and deferred norm by turns.
void check_all(Bench& bench, std::uint32_t rows, std::uint32_t outputs, std::uint32_t columns) {
  static const std::uint32_t seed = fresh_seed();
  std::uint32_t turn = rows;
  for (const WeightFormat& format : kFormats) {
    for (const Epilogue epilogue : kEpilogues) {
      if (epilogue == Epilogue::Gate && outputs % 16 != 0) continue;
      const bool few = rows <= kMaxFewRows || bench.batch_invariant;
      Case c{rows, outputs, columns, epilogue};
      c.dtype = turn % 5 < 3 ? Dtype::BF16 : Dtype::F16;
      c.bias = turn % 2 == 0;
      c.deferred = few && turn % 3 != 0;
      c.scale = epilogue == Epilogue::Add && turn % 4 == 0 ? 0.22F : 1.0F;
      c.format = format;
      c.few = few;
      check_right(bench, c, seed + turn * 977 + columns);
      ++turn;
    }
  }
}

TEST_CASE("products of few rows with quantized matrices are right") {
  Bench bench;
  for (const std::uint32_t rows : {1U, 7U, 9U, 17U, 33U, kMaxFewRows}) {
    check_all(bench, rows, 1, 136);
    check_all(bench, rows, 211, 40);
    check_all(bench, rows, 272, 328);
  }
  check_all(bench, 5, 144, 4104);
  check_all(bench, 12, 4112, 520);
}

TEST_CASE("products of many rows with quantized matrices are right") {
  Bench bench;
  for (const std::uint32_t rows : {kMaxFewRows + 1, 140U}) {
    check_all(bench, rows, 211, 136);
    check_all(bench, rows, 272, 328);
  }
}

TEST_CASE("products of any number of rows with quantized matrices are right as few rows") {
  Bench bench;
  bench.set_batch_invariant();
  check_all(bench, 65, 272, 1992);
  check_all(bench, 140, 144, 328);
}

TEST_CASE("a row in a batch equals the row alone with quantized matrices") {
  Bench bench;
  for (const WeightFormat& format : kFormats) {
    Case c{kMaxFewRows, 272, 1992, Epilogue::StoreFloat};
    c.format = format;
    const Problem problem(c, fresh_seed());
    const Outputs together = bench.run(problem);
    for (const std::uint32_t count : {1U, 9U, 30U}) {
      CAPTURE(count);
      const Outputs alone = bench.run(problem, 11, count);
      CHECK(
          ops::test::same_bits(alone.out, std::span(together.out).subspan(11 * 272, count * 272)));
    }
  }
}

TEST_CASE("dequantized rows are the weights, rounded") {
  const TestDevice device;
  Random random(fresh_seed());
  for (const WeightFormat& format : kFormats) {
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
