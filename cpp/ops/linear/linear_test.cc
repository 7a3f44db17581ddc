// Goal: products are right for every dtype and shape, and a row's bits never depend on its company.
// Method: random shapes against float64; the same rows alone, in batches of 1 to 33, on 1 to 4
// threads.
#include "ops/linear/linear.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {
namespace {

struct Case {
  std::uint32_t rows;
  std::uint32_t outputs;
  std::uint32_t columns;
  Dtype dtype;
  bool bias;
  bool accumulate;
};

// A random problem and its float64 answer.
struct Problem {
  Case shape;
  std::vector<float> x;
  std::vector<float> weights;  // as the device has them
  std::vector<float> bias;
  std::vector<float> start;
  AlignedBytes packed;

  Problem(const Case& c, std::uint32_t seed, const OpContext& context)
      : shape(c), packed(packed_bytes(weight_shape())) {
    Random random(seed);
    x = random.normals(std::size_t{c.rows} * c.columns);
    weights = random.normals(std::size_t{c.outputs} * c.columns);
    for (float& w : weights) w = rounded(w * 0.05F, c.dtype);
    bias = random.normals(c.outputs);
    start = random.normals(std::size_t{c.rows} * c.outputs);
    std::fill_n(packed.data(), packed.size(), std::byte{0xff});  // NaN, for every dtype
    const auto source = encode(weights, c.dtype);
    pack_rows(context, weight_shape(), packed.data(), 0, {source.data(), c.dtype, c.outputs});
  }

  WeightShape weight_shape() const { return {shape.outputs, shape.columns, shape.dtype}; }

  LinearArgs args(float* out) const {
    return {x.data(),
            shape.rows,
            {packed.data(), weight_shape()},
            shape.bias ? bias.data() : nullptr,
            out,
            shape.accumulate};
  }

  // Largest error of `out` in units of the sum of the terms' magnitudes.
  double worst_error(std::span<const float> out) const {
    double worst = 0.0;
    for (std::size_t m = 0; m < shape.rows; ++m) {
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        const std::size_t at = m * shape.outputs + n;
        double sum = (shape.accumulate ? start[at] : 0.0) + (shape.bias ? bias[n] : 0.0);
        double magnitude = std::abs(sum) + 1e-30;
        for (std::size_t k = 0; k < shape.columns; ++k) {
          const double term =
              double{x[m * shape.columns + k]} * double{weights[n * shape.columns + k]};
          sum += term;
          magnitude += std::abs(term);
        }
        const double error = std::abs(out[at] - sum) / magnitude;
        worst = error <= worst ? worst : error;  // a NaN becomes the worst
      }
    }
    return worst;
  }
};

// Products of floats: the rounding of sums over at most 1,024 terms. bf16 hardware: x is rounded to
// 8 bits.
double tolerance(Isa isa, Dtype dtype) {
  return isa == Isa::Avx512Bf16 && dtype == Dtype::BF16 ? 1.0 / 256 + 4e-6 : 4e-6;
}

void check_case(Isa isa, const Case& c, std::uint32_t seed) {
  CAPTURE(c.rows);
  CAPTURE(c.outputs);
  CAPTURE(c.columns);
  CAPTURE(std::string(dtype_name(c.dtype)));
  Device device(isa, 2, linear_workspace_bytes(c.rows, c.columns));
  const Problem problem(c, seed, device.context());
  Output out(std::size_t{c.rows} * c.outputs);
  if (c.accumulate) std::copy(problem.start.begin(), problem.start.end(), out.data());
  linear(device.context(), problem.args(out.data()));
  CHECK(problem.worst_error(out.span()) < tolerance(isa, c.dtype));
  CHECK(out.guards_are_whole());
}

constexpr Dtype kDtypes[] = {Dtype::F32, Dtype::F16, Dtype::BF16};

}  // namespace

TEST_CASE("linear agrees with float64 at every tile height and border") {
  for_each_isa([](Isa isa) {
    std::uint32_t seed = 0;
    for (const Dtype dtype : kDtypes) {
      for (std::uint32_t rows = 1; rows <= 13; ++rows) {
        check_case(isa, {rows, 1 + rows * 7, 64, dtype, rows % 2 == 0, rows % 3 == 0}, ++seed);
      }
      check_case(isa, {1, 1, 1, dtype, false, false}, ++seed);
      check_case(isa, {3, 64, 1025, dtype, true, false}, ++seed);
      check_case(isa, {5, 33, 2051, dtype, false, true}, ++seed);
      check_case(isa, {40, 96, 512, dtype, true, true}, ++seed);
    }
  });
}

TEST_CASE("linear agrees with float64 for random shapes") {
  for_each_isa([](Isa isa) {
    Random random(7);
    for (std::uint32_t round = 0; round < 40; ++round) {
      const Case c{random.integer(1, 30),     random.integer(1, 150),
                   random.integer(1, 700),    kDtypes[random.integer(0, 2)],
                   random.integer(0, 1) == 1, random.integer(0, 1) == 1};
      check_case(isa, c, 100 + round);
    }
  });
}

TEST_CASE("a row has the same bits alone, in any batch and for any number of threads") {
  for_each_isa([](Isa isa) {
    for (const Dtype dtype : kDtypes) {
      CAPTURE(std::string(dtype_name(dtype)));
      constexpr std::uint32_t kMaxRows = 33;
      constexpr std::uint32_t kOutputs = 200;
      constexpr std::uint32_t kColumns = 1203;
      const std::size_t workspace = linear_workspace_bytes(kMaxRows, kColumns);
      Device single(isa, 1, workspace);
      const Problem problem({kMaxRows, kOutputs, kColumns, dtype, true, false}, 3,
                            single.context());
      std::vector<float> alone(std::size_t{kMaxRows} * kOutputs, kPoison);
      for (std::uint32_t m = 0; m < kMaxRows; ++m) {
        LinearArgs args = problem.args(alone.data() + std::size_t{m} * kOutputs);
        args.x += std::size_t{m} * kColumns;
        args.num_rows = 1;
        linear(single.context(), args);
      }
      for (std::uint32_t num_threads = 1; num_threads <= 4; ++num_threads) {
        Device device(isa, num_threads, workspace);
        for (std::uint32_t rows = 1; rows <= kMaxRows; ++rows) {
          // A batch that ends with the last row, so that a row has another place in each.
          const std::uint32_t first = kMaxRows - rows;
          Output out(std::size_t{rows} * kOutputs);
          LinearArgs args = problem.args(out.data());
          args.x += std::size_t{first} * kColumns;
          args.num_rows = rows;
          linear(device.context(), args);
          const std::span expected(alone.data() + std::size_t{first} * kOutputs,
                                   std::size_t{rows} * kOutputs);
          REQUIRE(same_bits(out.span(), expected));
        }
      }
    }
  });
}

TEST_CASE("a row that is not a number leaves its neighbours alone") {
  for_each_isa([](Isa isa) {
    Device device(isa, 2, linear_workspace_bytes(5, 70));
    Problem problem({5, 40, 70, Dtype::BF16, false, false}, 5, device.context());
    std::vector<float> clean(5 * 40);
    linear(device.context(), problem.args(clean.data()));
    for (std::size_t k = 0; k < 70; ++k) problem.x[2 * 70 + k] = kPoison;
    std::vector<float> spoiled(5 * 40);
    linear(device.context(), problem.args(spoiled.data()));
    for (std::size_t i = 0; i < clean.size(); ++i) {
      if (i / 40 == 2) {
        CHECK(std::isnan(spoiled[i]));
      } else {
        CHECK(spoiled[i] == clean[i]);
      }
    }
  });
}

TEST_CASE("linear of no rows does nothing, and a small workspace is refused") {
  for_each_isa([](Isa isa) {
    Device device(isa, 2, 0);
    const Problem problem({2, 8, 8, Dtype::F32, false, false}, 5, device.context());
    LinearArgs args = problem.args(nullptr);
    args.num_rows = 0;
    linear(device.context(), args);
    std::vector<float> out(16);
    args = problem.args(out.data());
    if (isa == Isa::Portable) return;  // needs none
    CHECK_THROWS_AS(linear(device.context(), args), std::invalid_argument);
  });
}

}  // namespace inferno::ops::test
