// Goal: products on the GPU are right for every shape and epilogue, and a row's bits never depend
// on its company. Method: random shapes against float64, outputs poisoned and between guards; the
// same rows alone and in batches; the same calls replayed from a graph.
#include "ops/linear_cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "ops/cuda_test_support.h"
#include "ops/linear_product.h"
#include "ops/test_support.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::Random;
using ops::test::rounded;

constexpr float kEps = 1e-5F;

struct Case {
  std::uint32_t rows;  // T
  std::uint32_t outputs;
  std::uint32_t columns;
  Epilogue epilogue = Epilogue::Store;
  Dtype dtype = Dtype::BF16;
  bool bias = false;
  bool deferred = false;  // the input comes with sums of squares
};

// A value and the sum of its terms' magnitudes.
struct Sum {
  double value = 0;
  double magnitude = 0;
};

std::vector<float> rounded_all(std::vector<float> values, float factor, Dtype dtype) {
  for (float& value : values) value = rounded(value * factor, dtype);
  return values;
}

// A random problem, on the host and on the device.
struct Problem {
  Case shape;
  std::vector<float> h, weights, bias, sums, x, norm_weight;
  DeviceBuffer<std::uint16_t> device_h, device_weights;
  DeviceBuffer<float> device_bias, device_sums, device_norm_weight;

  Problem(const Case& c, std::uint32_t seed) : Problem(c, Random(seed)) {}
  Problem(const Case& c, Random random)
      : shape(c),
        h(rounded_all(random.normals(std::size_t{c.rows} * c.columns), 1.0F, c.dtype)),
        weights(rounded_all(random.normals(std::size_t{c.outputs} * c.columns), 0.05F, c.dtype)),
        bias(random.normals(c.outputs)),
        sums(random.normals(std::size_t{c.rows} * norm_parts(c.columns))),
        x(random.normals(std::size_t{c.rows} * c.outputs)),
        norm_weight(random.normals(c.outputs)),
        device_h(to_elements(h, c.dtype)),
        device_weights(to_elements(weights, c.dtype)),
        device_bias(bias),
        device_sums(squared(sums, c.columns)),
        device_norm_weight(norm_weight) {}

  static const std::vector<float>& squared(std::vector<float>& sums, std::uint32_t columns) {
    for (float& sum : sums) sum *= sum * static_cast<float>(columns);
    return sums;
  }

  DeviceMatrix matrix() const {
    return {device_weights.data(), shape.outputs, shape.columns, shape.dtype};
  }
  // Rows [first, first + count).
  LinearInput input(std::uint32_t first, std::uint32_t count) const {
    const std::size_t parts = norm_parts(shape.columns);
    return {device_h.data() + std::size_t{first} * shape.columns, count,
            shape.deferred ? device_sums.data() + first * parts : nullptr, kEps};
  }
  const float* bias_or_null() const { return shape.bias ? device_bias.data() : nullptr; }
  std::uint32_t columns_out() const {
    return shape.epilogue == Epilogue::Gate ? shape.outputs / 2 : shape.outputs;
  }

  Sum product(std::uint32_t row, std::uint32_t output) const {
    Sum sum;
    for (std::uint32_t k = 0; k < shape.columns; ++k) {
      const double term = double{h[std::size_t{row} * shape.columns + k]} *
                          weights[std::size_t{output} * shape.columns + k];
      sum.value += term;
      sum.magnitude += std::abs(term);
    }
    const double scale = shape.deferred ? row_scale(row) : 1.0;
    const double shift = shape.bias ? bias[output] : 0.0;
    return {sum.value * scale + shift, sum.magnitude * scale + std::abs(shift)};
  }

  double row_scale(std::uint32_t row) const {
    const std::uint32_t parts = norm_parts(shape.columns);
    double sum = 0;
    for (std::uint32_t i = 0; i < parts; ++i) sum += sums[std::size_t{row} * parts + i];
    return 1.0 / std::sqrt(sum / shape.columns + kEps);
  }
};

// What a call left.
struct Outputs {
  std::vector<float> out;  // [T, outputs]
  std::vector<float> next_h;
  std::vector<float> next_sums;
  bool deferred = false;
  bool guards_are_whole = false;

  bool operator==(const Outputs& other) const {
    return ops::test::same_bits(out, other.out) && ops::test::same_bits(next_h, other.next_h) &&
           deferred == other.deferred &&
           (!deferred || ops::test::same_bits(next_sums, other.next_sums));
  }
};

// The memory that calls write for rows [first, first + count) of a problem.
class Target {
 public:
  Target(const Problem& problem, std::uint32_t first, std::uint32_t count)
      : problem_(problem),
        first_(first),
        count_(count),
        elements_(size()),
        floats_(size()),
        scratch_(std::size_t{count} * problem.shape.outputs),
        next_h_(size()),
        next_sums_(std::size_t{std::max(count, kMaxFewRows)} * norm_parts(problem.columns_out())) {
    if (problem.shape.epilogue != Epilogue::Add) return;
    floats_.copy_from(std::span(problem.x).subspan(std::size_t{first} * problem.columns_out()));
  }

  void call(LinearCuda& linear, const CudaOp& op) {
    const LinearInput in = problem_.input(first_, count_);
    const DeviceMatrix weight = problem_.matrix();
    const float* bias = problem_.bias_or_null();
    switch (problem_.shape.epilogue) {
      case Epilogue::Store:
        return linear.store(op, in, weight, bias, elements_.data());
      case Epilogue::StoreFloat:
        return linear.store_f32(op, in, weight, bias, floats_.data());
      case Epilogue::Gate:
        return linear.gate(op, in, weight, bias, scratch_.data(), elements_.data());
      case Epilogue::Add:
        deferred_ = linear.add(op, in, weight, bias, floats_.data(), next());
    }
  }

  Outputs outputs() const {
    Outputs outputs;
    const Epilogue epilogue = problem_.shape.epilogue;
    const bool floats = epilogue == Epilogue::StoreFloat || epilogue == Epilogue::Add;
    outputs.out = floats ? floats_.to_host() : to_floats(elements_.to_host(), problem_.shape.dtype);
    if (epilogue == Epilogue::Add) {
      outputs.next_h = to_floats(next_h_.to_host(), problem_.shape.dtype);
      outputs.next_sums = next_sums_.to_host();
      outputs.next_sums.resize(std::size_t{count_} * norm_parts(problem_.columns_out()));
    }
    outputs.deferred = deferred_;
    outputs.guards_are_whole = elements_.guards_are_whole() && floats_.guards_are_whole() &&
                               scratch_.guards_are_whole() && next_h_.guards_are_whole() &&
                               next_sums_.guards_are_whole();
    return outputs;
  }

 private:
  std::size_t size() const { return std::size_t{count_} * problem_.columns_out(); }
  NextNorm next() const {
    if (problem_.columns_out() % 8 != 0) return {};
    return {problem_.device_norm_weight.data(), kEps, next_h_.data(), next_sums_.data()};
  }

  const Problem& problem_;
  std::uint32_t first_;
  std::uint32_t count_;
  DeviceBuffer<std::uint16_t> elements_;
  DeviceBuffer<float> floats_;
  DeviceBuffer<std::uint16_t> scratch_;
  DeviceBuffer<std::uint16_t> next_h_;
  DeviceBuffer<float> next_sums_;
  bool deferred_ = false;
};

// A device with the products' workspace.
struct Bench {
  explicit Bench(bool plain = false) : workspace(LinearCuda::workspace_bytes()) {
    workspace.zero();
    op = device.op();
    if (plain) op.dependent_launch = false;
    linear = std::make_unique<LinearCuda>(op, workspace.data());
  }

  Outputs run(const Problem& problem, std::uint32_t first, std::uint32_t count) {
    Target target(problem, first, count);
    target.call(*linear, op);
    device.wait();
    return target.outputs();
  }
  Outputs run(const Problem& problem) { return run(problem, 0, problem.shape.rows); }

  TestDevice device;
  DeviceBuffer<std::byte> workspace;
  CudaOp op{};
  std::unique_ptr<LinearCuda> linear;
};

double rounding(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1p-8 : 0x1p-11; }

// Sums in float: 1e-5 of the terms' magnitudes; the rest is rounding to elements.
constexpr double kSumError = 1e-5;
constexpr double kTiny = 1e-6;  // below the smallest step of f16

// Largest error in units of what is allowed.
struct Worst {
  double value = 0;
  void see(double got, double expected, double allowed) {
    const double error = std::abs(got - expected) / allowed;
    if (!(error <= value)) value = std::isnan(error) ? 1e30 : error;
  }
};

double worst_gated(const Problem& p, const Outputs& outputs) {
  const double eps = rounding(p.shape.dtype);
  Worst worst;
  for (std::uint32_t t = 0; t < p.shape.rows; ++t) {
    for (std::uint32_t n = 0; n < p.columns_out(); ++n) {
      const Sum gate = p.product(t, n);
      const Sum up = p.product(t, p.columns_out() + n);
      const double gated = gate.value / (1.0 + std::exp(-gate.value)) * up.value;
      // Gate and up may have been rounded to elements, before their bias and after.
      const double gate_bias = p.shape.bias ? std::abs(p.bias[n]) : 0.0F;
      const double up_bias = p.shape.bias ? std::abs(p.bias[p.columns_out() + n]) : 0.0F;
      const double gate_error =
          eps * (std::abs(gate.value) + gate_bias) + kSumError * gate.magnitude + kTiny;
      const double up_error =
          eps * (std::abs(up.value) + up_bias) + kSumError * up.magnitude + kTiny;
      const double allowed = eps * std::abs(gated) + 1.1 * gate_error * std::abs(up.value) +
                             up_error * std::abs(gate.value) + gate_error * up_error + kTiny;
      worst.see(outputs.out[std::size_t{t} * p.columns_out() + n], gated, allowed);
    }
  }
  return worst.value;
}

double worst_sums(const Problem& p, const Outputs& outputs) {
  const bool elements = p.shape.epilogue == Epilogue::Store;
  const double eps = elements ? 2 * rounding(p.shape.dtype) : 0x1p-20;
  Worst worst;
  for (std::uint32_t t = 0; t < p.shape.rows; ++t) {
    for (std::uint32_t n = 0; n < p.shape.outputs; ++n) {
      const std::size_t at = std::size_t{t} * p.shape.outputs + n;
      Sum sum = p.product(t, n);
      if (p.shape.epilogue == Epilogue::Add) sum.value += p.x[at];
      // The bias may have been added to a rounded product.
      const double rounded_size = std::abs(sum.value) + (p.shape.bias ? std::abs(p.bias[n]) : 0.0F);
      const double allowed = eps * rounded_size + kSumError * (sum.magnitude + 1) + kTiny;
      worst.see(outputs.out[at], sum.value, allowed);
    }
  }
  return worst.value;
}

// What is left for the next norm, judged by the x that was left.
double worst_next(const Problem& p, const Outputs& outputs) {
  const double eps = rounding(p.shape.dtype);
  Worst worst;
  const std::uint32_t n = p.shape.outputs;
  for (std::uint32_t t = 0; t < p.shape.rows; ++t) {
    const float* x = outputs.out.data() + std::size_t{t} * n;
    double squares = 0;
    for (std::uint32_t i = 0; i < n; ++i) squares += double{x[i]} * x[i];
    const double scale = outputs.deferred ? 1.0 : 1.0 / std::sqrt(squares / n + kEps);
    for (std::uint32_t i = 0; i < n; ++i) {
      const double expected = x[i] * scale * p.norm_weight[i];
      worst.see(outputs.next_h[std::size_t{t} * n + i], expected, eps * std::abs(expected) + kTiny);
    }
    if (!outputs.deferred) continue;
    double sum = 0;
    for (std::uint32_t i = 0; i < norm_parts(n); ++i) {
      sum += outputs.next_sums[std::size_t{t} * norm_parts(n) + i];
    }
    worst.see(sum, squares, 1e-5 * squares + kTiny);
  }
  return worst.value;
}

void check_right(Bench& bench, const Case& c, std::uint32_t seed) {
  CAPTURE(c.rows);
  CAPTURE(c.outputs);
  CAPTURE(c.columns);
  CAPTURE(static_cast<int>(c.epilogue));
  CAPTURE(std::string(dtype_name(c.dtype)));
  CAPTURE(c.bias);
  CAPTURE(c.deferred);
  const Problem problem(c, seed);
  const Outputs outputs = bench.run(problem);
  CHECK(outputs.guards_are_whole);
  if (c.epilogue == Epilogue::Gate) {
    CHECK(worst_gated(problem, outputs) <= 1.0);
    return;
  }
  CHECK(worst_sums(problem, outputs) <= 1.0);
  if (c.epilogue == Epilogue::Add && c.outputs % 8 == 0) {
    CHECK(worst_next(problem, outputs) <= 1.0);
  }
}

constexpr Epilogue kEpilogues[] = {Epilogue::Store, Epilogue::StoreFloat, Epilogue::Add,
                                   Epilogue::Gate};
constexpr Dtype kDtypes[] = {Dtype::BF16, Dtype::F16};

// Every epilogue and dtype for a shape; bias and deferred norm by turns.
void check_all(Bench& bench, std::uint32_t rows, std::uint32_t outputs, std::uint32_t columns) {
  std::uint32_t turn = rows;
  for (const Epilogue epilogue : kEpilogues) {
    if (epilogue == Epilogue::Gate && outputs % 16 != 0) continue;
    for (const Dtype dtype : kDtypes) {
      const bool deferred = rows <= kMaxFewRows && turn % 3 != 0;
      check_right(bench, {rows, outputs, columns, epilogue, dtype, turn % 2 == 0, deferred},
                  turn * 977 + columns);
      ++turn;
    }
  }
}

constexpr std::uint32_t kRows[] = {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 100, 300};

TEST_CASE("products of any shape are right") {
  Bench bench;
  for (const std::uint32_t rows : kRows) {
    check_all(bench, rows, 72, 40);
    check_all(bench, rows, 211, 136);
    check_all(bench, rows, 144, 8);
    check_all(bench, rows, 272, 328);
  }
}

TEST_CASE("products cut among blocks are right") {
  Bench bench;
  for (const std::uint32_t rows : {1U, 9U, 17U, 32U}) {
    check_all(bench, rows, 272, 4104);   // many blocks a tile
    check_all(bench, rows, 1104, 1992);  // cuts anywhere
  }
  check_all(bench, 1, 20016, 520);  // several tiles a block
}

TEST_CASE("the plain kernel is right") {
  Bench bench(true);
  for (const std::uint32_t rows : {1U, 8U, 17U, 32U}) {
    check_all(bench, rows, 72, 40);
    check_all(bench, rows, 272, 328);
  }
}

TEST_CASE("a row in a batch equals the row alone") {
  Bench bench;
  for (const Epilogue epilogue : kEpilogues) {
    CAPTURE(static_cast<int>(epilogue));
    const Problem problem({32, 1104, 1992, epilogue, Dtype::BF16, true, true}, 5);
    const Outputs together = bench.run(problem);
    const std::size_t width = problem.columns_out();
    for (const std::uint32_t count : {1U, 3U, 9U, 20U}) {
      CAPTURE(count);
      const std::uint32_t first = 11;
      const Outputs alone = bench.run(problem, first, count);
      CHECK(ops::test::same_bits(alone.out,
                                 std::span(together.out).subspan(first * width, count * width)));
      if (epilogue != Epilogue::Add) continue;
      const std::size_t parts = norm_parts(problem.columns_out());
      CHECK(ops::test::same_bits(alone.next_h,
                                 std::span(together.next_h).subspan(first * width, count * width)));
      CHECK(ops::test::same_bits(
          alone.next_sums, std::span(together.next_sums).subspan(first * parts, count * parts)));
    }
  }
}

TEST_CASE("a row in a large batch equals the row alone, where that is asked for") {
  Bench bench;
  bench.linear->set_batch_invariant(true);
  for (const Epilogue epilogue : kEpilogues) {
    CAPTURE(static_cast<int>(epilogue));
    const Problem problem({100, 272, 1992, epilogue, Dtype::F16, true, true}, 6);
    const Outputs together = bench.run(problem);
    const std::size_t width = problem.columns_out();
    for (const std::uint32_t first : {0U, 31U, 64U, 99U}) {
      const Outputs alone = bench.run(problem, first, 1);
      CHECK(ops::test::same_bits(alone.out, std::span(together.out).subspan(first * width, width)));
    }
  }
}

TEST_CASE("the same call gives the same bits, from a graph too") {
  Bench bench;
  for (const std::uint32_t rows : {1U, 17U, 64U}) {
    CAPTURE(rows);
    for (const Epilogue epilogue : kEpilogues) {
      if (epilogue == Epilogue::Add) continue;  // not idempotent
      CAPTURE(static_cast<int>(epilogue));
      const Problem problem({rows, 1104, 1992, epilogue}, 7);
      const Outputs expected = bench.run(problem);
      CHECK(bench.run(problem) == expected);

      Target target(problem, 0, rows);
      cudaGraph_t graph;
      cudaGraphExec_t executable;
      check(cudaStreamBeginCapture(bench.op.stream, cudaStreamCaptureModeThreadLocal), "begin");
      for (int i = 0; i < 20; ++i) target.call(*bench.linear, bench.op);
      check(cudaStreamEndCapture(bench.op.stream, &graph), "end");
      check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
      for (int i = 0; i < 20; ++i) check(cudaGraphLaunch(executable, bench.op.stream), "launch");
      bench.device.wait();
      CHECK(target.outputs() == expected);
      cudaGraphExecDestroy(executable);
      cudaGraphDestroy(graph);
    }
  }
}

TEST_CASE("refuses what it cannot multiply") {
  Bench bench;
  float out = 0;
  const LinearInput in{nullptr, 1, nullptr, 0};
  const DeviceMatrix odd{nullptr, 16, 12, Dtype::BF16};
  CHECK_THROWS_AS(bench.linear->store(bench.op, in, odd, nullptr, &out), std::invalid_argument);
  const DeviceMatrix wide{nullptr, 16, 16, Dtype::F32};
  CHECK_THROWS_AS(bench.linear->store(bench.op, in, wide, nullptr, &out), std::invalid_argument);
  const LinearInput many{nullptr, kMaxFewRows + 1, &out, 0};
  const DeviceMatrix good{nullptr, 16, 16, Dtype::BF16};
  CHECK_THROWS_AS(bench.linear->store(bench.op, many, good, nullptr, &out), std::invalid_argument);
}

TEST_CASE("an empty batch launches nothing") {
  Bench bench;
  const DeviceMatrix good{nullptr, 16, 16, Dtype::BF16};
  bench.linear->store(bench.op, {}, good, nullptr, nullptr);
  bench.device.wait();
}

}  // namespace
}  // namespace inferno::ops::cuda::test
