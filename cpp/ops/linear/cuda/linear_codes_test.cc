// Goal: products with quantized matrices on the GPU are right for every format, shape and epilogue.
// Method: random codes, scales and offsets; the same checks against float64 as of other products,
// with the weights that these stand for.
#include <doctest/doctest.h>

#include <utility>

#include "ops/linear/cuda/linear_cuda_checks.h"

namespace inferno::ops::cuda::test {
namespace {

constexpr Epilogue kEpilogues[] = {Epilogue::Store, Epilogue::StoreFloat, Epilogue::Add,
                                   Epilogue::Gate};

// Every format, epilogue and type of activations; bias and deferred norm by turns.
void check_all(Bench& bench, std::uint32_t rows, std::uint32_t outputs, std::uint32_t columns) {
  static const std::uint32_t seed = fresh_seed();
  std::uint32_t turn = rows;
  for (const WeightFormat& format : kCodeFormats) {
    for (const Epilogue epilogue : kEpilogues) {
      if (epilogue == Epilogue::Gate && outputs % 16 != 0) continue;
      const bool few = rows <= kMaxFewRows || bench.batch_invariant;
      Case c{rows, outputs, columns, epilogue};
      c.dtype = turn % 5 < 3 ? Dtype::BF16 : Dtype::F16;
      c.bias = turn % 2 == 0;
      c.deferred = few && turn % 3 != 0;
      c.scale = epilogue == Epilogue::Add && turn % 4 == 0 ? 0.22F : 1.0F;
      c.format = format;
      c.few = bench.batch_invariant;
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
  // Of each block more tiles than sums have places for.
  check_all(bench, 8, 14376, 264);
}

// Of each block so many columns that inputs as two codes leave little room, and more tiles than
// sums have places for.
TEST_CASE("products of few rows with fp8 matrices of many columns are right") {
  Bench bench;
  const auto check = [&](std::uint32_t rows, std::uint32_t outputs, std::uint32_t columns,
                         Dtype dtype) {
    for (const Epilogue epilogue : kEpilogues) {
      Case c{rows, outputs, columns, epilogue, dtype};
      c.deferred = dtype == Dtype::BF16;
      c.format = {WeightKind::Fp8};
      check_right(bench, c, fresh_seed());
    }
  };
  check(31, 4368, 8264, Dtype::BF16);
  check(17, 144, 8264, Dtype::F16);
  // Too many for inputs of more than eight rows, and for any.
  check(8, 144, 18952, Dtype::BF16);
  check(24, 144, 18952, Dtype::BF16);
  check(24, 144, 33000, Dtype::BF16);
}

TEST_CASE("products of many rows with quantized matrices are right") {
  Bench bench;
  for (const std::uint32_t rows : {33U, 48U, 64U, 65U, 100U, 128U, 200U, 256U}) {
    check_all(bench, rows, 211, 136);
    check_all(bench, rows, 272, 328);
  }
  check_all(bench, 33, 1, 40);
  check_all(bench, 70, 1200, 1032);
  check_all(bench, 130, 528, 4104);
  check_all(bench, kMaxTiledRows + 1, 48, 136);
}

TEST_CASE("products of any number of rows with quantized matrices are right as few rows") {
  Bench bench;
  bench.set_batch_invariant();
  check_all(bench, 65, 272, 1992);
  check_all(bench, 140, 144, 328);
}

TEST_CASE("a row in a batch equals the row alone with quantized matrices") {
  Bench bench;
  bench.set_batch_invariant();
  for (const WeightFormat& format : kCodeFormats) {
    for (const std::uint32_t columns : {1992U, 10248U}) {
      Case c{kMaxFewRows, 272, columns, Epilogue::StoreFloat};
      c.format = format;
      const Problem problem(c, fresh_seed());
      const Outputs together = bench.run(problem);
      for (const std::uint32_t count : {1U, 9U, 30U}) {
        CAPTURE(count);
        const Outputs alone = bench.run(problem, 11, count);
        CHECK(ops::test::same_bits(alone.out,
                                   std::span(together.out).subspan(11 * 272, count * 272)));
      }
    }
  }
}

}  // namespace
}  // namespace inferno::ops::cuda::test
