// Goal: products are right for every format and shape, and a row's bits never depend on its
// company. Method: random shapes against float64 with the weights that the codes stand for; the
// same rows alone, in batches of 1 to 33, on 1 to 4 threads.
#include "ops/linear/linear.h"

#include <stdexcept>

#include "ops/base/test_support.h"
#include "ops/linear/kernels/linear_tile.h"

namespace inferno::ops::test {
namespace {

struct Case {
  std::uint32_t rows;
  std::uint32_t outputs;
  std::uint32_t columns;
  WeightFormat format;
  bool bias;
  bool accumulate;
};

std::string name_of(const WeightFormat& format) {
  return std::string(weight_kind_name(format.kind)) + " in groups of " +
         std::to_string(format.group) + (format.offsets ? " with offsets" : "");
}

bool multiplies_integers(const WeightFormat& format) {
  return format.is_quantized() && format.kind != WeightKind::Fp8;
}

// Random rows of a format, as a checkpoint has them.
struct StoredRows {
  std::vector<std::byte> data;
  std::vector<float> scales;
  std::vector<float> offsets;

  StoredRows(const Case& c, Random& random) {
    const std::size_t count = std::size_t{c.outputs} * c.columns;
    if (!c.format.is_quantized()) {
      std::vector<float> weights = random.normals(count);
      for (float& w : weights) w *= 0.05F;
      data = encode(weights, c.format.dtype());
      return;
    }
    data.resize(c.outputs * source_row_bytes(c.format, c.columns));
    for (std::byte& codes : data) {
      codes = static_cast<std::byte>(random.integer(0, 255));
      const bool is_nan = (codes & std::byte{0x7f}) == std::byte{0x7f};
      if (c.format.kind == WeightKind::Fp8 && is_nan) codes = std::byte{0};
    }
    scales = random.normals(std::size_t{c.outputs} * num_groups(c.format, c.columns));
    for (float& scale : scales) scale *= 0.01F;
    if (c.format.offsets) offsets = random.normals(scales.size());
    for (float& offset : offsets) offset *= 0.02F;
  }

  RowSource source(const Case& c) const {
    return {data.data(), c.format, c.outputs, scales.data(),
            c.format.offsets ? offsets.data() : nullptr};
  }
};

// A random problem and its float64 answer.
struct Problem {
  Case shape;
  Isa isa;
  std::vector<float> x;
  std::vector<float> weights;  // what the codes stand for
  std::vector<float> bias;
  std::vector<float> start;
  AlignedBytes packed;

  Problem(const Case& c, std::uint32_t seed, const OpContext& context)
      : shape(c), isa(context.isa), packed(packed_bytes(weight_shape())) {
    Random random(seed);
    x = random.normals(std::size_t{c.rows} * c.columns);
    const StoredRows stored(c, random);
    bias = random.normals(c.outputs);
    start = random.normals(std::size_t{c.rows} * c.outputs);
    std::fill_n(packed.data(), packed.size(), std::byte{0xff});  // NaN, for every dtype
    pack_rows(context, weight_shape(), packed.data(), 0, stored.source(c));
    weights.resize(std::size_t{c.outputs} * c.columns);
    for (std::uint32_t n = 0; n < c.outputs; ++n) {
      unpack_row({packed.data(), weight_shape()}, n, weights.data() + std::size_t{n} * c.columns);
    }
  }

  WeightShape weight_shape() const { return {shape.outputs, shape.columns, shape.format}; }

  LinearArgs args(float* out) const {
    return {x.data(),
            shape.rows,
            {packed.data(), weight_shape()},
            shape.bias ? bias.data() : nullptr,
            out,
            shape.accumulate};
  }

  // By how much a product may take x[m, k] for another value: where the hardware multiplies bf16,
  // half a step of 8 bits; where it multiplies integers, half of the span's step.
  double rounding_of_x(std::size_t m, std::size_t k) const {
    const float* row = x.data() + m * shape.columns;
    if (isa == Isa::Portable) return 0;
    if (!multiplies_integers(shape.format)) {
      const bool bf16 = isa >= Isa::Avx512Bf16 && (shape.format.kind == WeightKind::BF16 ||
                                                   shape.format.kind == WeightKind::Fp8);
      return bf16 ? std::abs(double{row[k]}) / 256 : 0;
    }
    const std::size_t group = shape.format.group == 0 ? kSpanColumns : shape.format.group;
    const std::size_t span = std::min<std::size_t>(kSpanColumns, group);
    const std::size_t first = k / span * span;
    double largest = 0;
    for (std::size_t i = first; i < std::min<std::size_t>(first + span, shape.columns); ++i) {
      largest = std::max(largest, std::abs(double{row[i]}));
    }
    return largest / 254;
  }

  // Largest error of `out` as a share of what is allowed: the roundings of x, and of sums.
  double worst_error(std::span<const float> out) const {
    constexpr double kSumError = 4e-6;  // of the terms' magnitudes, over at most 1,024 at once
    double worst = 0.0;
    for (std::size_t m = 0; m < shape.rows; ++m) {
      std::vector<double> roundings(shape.columns);
      for (std::size_t k = 0; k < shape.columns; ++k) roundings[k] = rounding_of_x(m, k);
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        const std::size_t at = m * shape.outputs + n;
        double sum = (shape.accumulate ? start[at] : 0.0) + (shape.bias ? bias[n] : 0.0);
        double allowed = kSumError * (std::abs(sum) + 1e-30);
        for (std::size_t k = 0; k < shape.columns; ++k) {
          const double weight = weights[n * shape.columns + k];
          const double term = double{x[m * shape.columns + k]} * weight;
          sum += term;
          allowed += roundings[k] * std::abs(weight) +
                     kSumError * magnitude_of(term, x[m * shape.columns + k]);
        }
        const double error = std::abs(out[at] - sum) / allowed;
        worst = error <= worst ? worst : error;  // a NaN becomes the worst
      }
    }
    return worst;
  }

  // Codes are multiplied before their zero point and offset are taken off, which may cancel most of
  // a term.
  double magnitude_of(double term, double value) const {
    return std::abs(term) + (multiplies_integers(shape.format) ? 4 * std::abs(value) : 0);
  }
};

void check_case(Isa isa, const Case& c, std::uint32_t seed) {
  CAPTURE(c.rows);
  CAPTURE(c.outputs);
  CAPTURE(c.columns);
  CAPTURE(name_of(c.format));
  Device device(isa, 2, linear_workspace_bytes(c.rows, c.columns, 2));
  const Problem problem(c, seed, device.context());
  Output out(std::size_t{c.rows} * c.outputs);
  if (c.accumulate) std::copy(problem.start.begin(), problem.start.end(), out.data());
  linear(device.context(), problem.args(out.data()));
  CHECK(problem.worst_error(out.span()) < 1);
  CHECK(out.guards_are_whole());
}

const WeightFormat kFormats[] = {
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    {WeightKind::Fp8},
    {WeightKind::Fp8, 128},
    {WeightKind::Int8},
    {WeightKind::Int8, 0, true},
    {WeightKind::Int8, 16, true},
    {WeightKind::Int8, 32, true},
    {WeightKind::Int8, 64},
    {WeightKind::Int8, 128},
    {WeightKind::Int4},
    {WeightKind::Int4, 16},
    {WeightKind::Int4, 32, true},
    {WeightKind::Int4, 64, true},
    {WeightKind::Int4, 128},
    {WeightKind::Int4, 128, true},
    {WeightKind::Mxfp4, 32},
};

}  // namespace

TEST_CASE("linear agrees with float64 at every tile height and border") {
  for_each_isa([](Isa isa) {
    std::uint32_t seed = 0;
    for (const WeightFormat& format : kFormats) {
      for (std::uint32_t rows = 1; rows <= 13; ++rows) {
        check_case(isa, {rows, 1 + rows * 7, 64, format, rows % 2 == 0, rows % 3 == 0}, ++seed);
      }
      check_case(isa, {1, 1, 1, format, false, false}, ++seed);
      check_case(isa, {3, 64, 1025, format, true, false}, ++seed);
      check_case(isa, {5, 33, 2051, format, false, true}, ++seed);
      check_case(isa, {40, 96, 512, format, true, true}, ++seed);
    }
  });
}

TEST_CASE("linear agrees with float64 for random shapes") {
  for_each_isa([](Isa isa) {
    Random random(7);
    for (std::uint32_t round = 0; round < 80; ++round) {
      const Case c{random.integer(1, 30),     random.integer(1, 150),
                   random.integer(1, 700),    kFormats[random.integer(0, std::size(kFormats) - 1)],
                   random.integer(0, 1) == 1, random.integer(0, 1) == 1};
      check_case(isa, c, 100 + round);
    }
  });
}

TEST_CASE("a row has the same bits alone, in any batch and for any number of threads") {
  for_each_isa([](Isa isa) {
    for (const WeightFormat& format : kFormats) {
      CAPTURE(name_of(format));
      constexpr std::uint32_t kMaxRows = 33;
      constexpr std::uint32_t kOutputs = 200;
      constexpr std::uint32_t kColumns = 1203;
      const std::size_t workspace = linear_workspace_bytes(kMaxRows, kColumns, 4);
      Device single(isa, 1, workspace);
      const Problem problem({kMaxRows, kOutputs, kColumns, format, true, false}, 3,
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
    for (const WeightFormat& format : kFormats) {
      CAPTURE(name_of(format));
      Device device(isa, 2, linear_workspace_bytes(5, 70, 2));
      Problem problem({5, 40, 70, format, false, false}, 5, device.context());
      std::vector<float> clean(5 * 40);
      linear(device.context(), problem.args(clean.data()));
      problem.x[2 * 70 + 3] = kPoison;
      problem.x[4 * 70 + 69] = std::numeric_limits<float>::infinity();
      std::vector<float> spoiled(5 * 40);
      linear(device.context(), problem.args(spoiled.data()));
      for (std::size_t i = 0; i < clean.size(); ++i) {
        if (i / 40 == 2 || i / 40 == 4) {
          REQUIRE(!std::isfinite(spoiled[i]));
        } else {
          REQUIRE(spoiled[i] == clean[i]);
        }
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
