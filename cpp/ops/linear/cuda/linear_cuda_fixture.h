// For linear_cuda_test: random products on the host and on the device, and their outputs between
// guards.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"
#include "ops/linear/cuda/code_layout_fixture.h"
#include "ops/linear/cuda/linear_cuda.h"
#include "ops/linear/cuda/linear_product.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda::test {

using ops::test::Random;
using ops::test::rounded;

inline constexpr float kEps = 1e-5F;

struct Case {
  std::uint32_t rows;  // T
  std::uint32_t outputs;
  std::uint32_t columns;
  Epilogue epilogue = Epilogue::Store;
  Dtype dtype = Dtype::BF16;
  bool bias = false;
  bool deferred = false;  // the input comes with sums of squares
  float scale = 1;        // of Add
  Activation activation{};
  WeightFormat format = Dtype::F32;  // where it is quantized; else the weights are of dtype
  bool few = false;                  // taken as few rows whatever their number

  // Whether inputs become codes, too.
  bool coded() const {
    return format == WeightFormat(WeightKind::Fp8) && outputs % 16 == 0 && rows > kMaxElementRows &&
           !few;
  }

  // Whether each becomes two codes.
  bool split() const {
    return format == WeightFormat(WeightKind::Fp8) && (few || rows <= kMaxFewCodeRows);
  }

  // Whether they become bytes.
  bool integers() const {
    return (format.kind == WeightKind::Int4 || format.kind == WeightKind::Int8) &&
           (few || rows <= kMaxFewCodeRows);
  }

  WeightShape matrix() const {
    return {outputs, columns, format.is_quantized() ? format : WeightFormat(dtype)};
  }
};

// Of Add: where the outputs are a width that has a norm.
inline bool next_is_asked(const Case& c) {
  return c.outputs % 8 == 0 && c.outputs <= kMaxHiddenSize;
}

// A value and the sum of its terms' magnitudes.
struct Sum {
  double value = 0;
  double magnitude = 0;
};

inline std::vector<float> rounded_all(std::vector<float> values, float factor, Dtype dtype) {
  for (float& value : values) value = rounded(value * factor, dtype);
  return values;
}

// What codes of e4m3 leave of rows [*, K], each with the scale of its largest number.
inline std::vector<float> through_codes(std::vector<float> rows, std::uint32_t num_columns) {
  for (auto row = rows.begin(); row != rows.end(); row += num_columns) {
    float largest = 0;
    for (std::uint32_t k = 0; k < num_columns; ++k) largest = std::max(largest, std::abs(row[k]));
    for (std::uint32_t k = 0; k < num_columns; ++k) {
      row[k] = e4m3_to_f32(f32_to_e4m3(row[k] * (kE4m3Max / largest))) * (largest / kE4m3Max);
    }
  }
  return rows;
}

// What two codes leave of rows [*, K]: the nearest and, of what that leaves, sixteen times as much.
inline std::vector<float> through_two_codes(std::vector<float> rows, std::uint32_t num_columns) {
  const auto through = [](float value) { return e4m3_to_f32(f32_to_e4m3(value)); };
  for (auto row = rows.begin(); row != rows.end(); row += num_columns) {
    for (std::uint32_t first = 0; first < num_columns; first += kSpanColumns) {
      const std::span part(&row[first], std::min(kSpanColumns, num_columns - first));
      float largest = 0;
      for (const float value : part) largest = std::max(largest, std::abs(value));
      const int exponent = 7 - std::ilogb(std::max(largest, 0x1p-100F));
      for (float& value : part) {
        const float scaled = std::ldexp(value, exponent);
        const float upper = through(scaled);
        value = std::ldexp(upper + through((scaled - upper) * 16) / 16, -exponent);
      }
    }
  }
  return rows;
}

// What bytes leave of each 128 columns of rows [*, K]; the operations are the kernel's.
inline std::vector<float> through_bytes(std::vector<float> rows, std::uint32_t num_columns) {
  constexpr float kWhole = 12582912.0F;  // 1.5 * 2^23: what is added to it becomes whole
  for (auto row = rows.begin(); row != rows.end(); row += num_columns) {
    for (std::uint32_t first = 0; first < num_columns; first += kSpanColumns) {
      const std::span part(&row[first], std::min(kSpanColumns, num_columns - first));
      float largest = 0;
      for (const float value : part) largest = std::max(largest, std::abs(value));
      for (float& value : part) {
        const float code = std::fma(value, 127.0F / largest, kWhole) - kWhole;
        value = code * (largest / 127.0F);
      }
    }
  }
  return rows;
}

// Random weights, and the bytes that a device has of them.
inline std::vector<std::byte> make_weights(const Case& c, Random& random,
                                           std::vector<float>& weights) {
  if (c.format.is_quantized()) return random_codes(c.matrix(), random, weights);
  weights = rounded_all(random.normals(weights.size()), 0.05F, c.dtype);
  return ops::test::encode(weights, c.dtype);
}

// A random problem, on the host and on the device.
struct Problem {
  Case shape;
  std::vector<float> h, weights, bias, sums, x, norm_weight;
  std::vector<float> multiplied;  // h, or what its codes leave of it
  DeviceBuffer<std::uint16_t> device_h;
  DeviceBuffer<std::byte> device_weights;
  DeviceBuffer<float> device_bias, device_sums, device_norm_weight;

  Problem(const Case& c, std::uint32_t seed) : Problem(c, Random(seed)) {}
  Problem(const Case& c, Random random)
      : shape(c),
        h(rounded_all(random.normals(std::size_t{c.rows} * c.columns), 1.0F, c.dtype)),
        weights(std::size_t{c.outputs} * c.columns),
        bias(random.normals(c.outputs)),
        sums(random.normals(std::size_t{c.rows} * norm_parts(c.columns))),
        x(random.normals(std::size_t{c.rows} * c.outputs)),
        norm_weight(random.normals(c.outputs)),
        multiplied(c.coded()      ? through_codes(h, c.columns)
                   : c.split()    ? through_two_codes(h, c.columns)
                   : c.integers() ? through_bytes(h, c.columns)
                                  : h),
        device_h(to_elements(h, c.dtype)),
        device_weights(make_weights(c, random, weights)),
        device_bias(bias),
        device_sums(squared(sums, c.columns)),
        device_norm_weight(norm_weight) {}

  static const std::vector<float>& squared(std::vector<float>& sums, std::uint32_t columns) {
    for (float& sum : sums) sum *= sum * static_cast<float>(columns);
    return sums;
  }

  DeviceMatrix matrix() const {
    return {device_weights.data(), shape.outputs, shape.columns, shape.matrix().format};
  }
  // Rows [first, first + count).
  LinearInput input(std::uint32_t first, std::uint32_t count) const {
    const std::size_t parts = norm_parts(shape.columns);
    return {device_h.data() + std::size_t{first} * shape.columns, count,
            shape.deferred ? device_sums.data() + first * parts : nullptr, kEps, shape.dtype};
  }
  const float* bias_or_null() const { return shape.bias ? device_bias.data() : nullptr; }
  std::uint32_t columns_out() const {
    return shape.epilogue == Epilogue::Gate ? shape.outputs / 2 : shape.outputs;
  }

  Sum product(std::uint32_t row, std::uint32_t output) const {
    Sum sum;
    for (std::uint32_t k = 0; k < shape.columns; ++k) {
      const double term = double{multiplied[std::size_t{row} * shape.columns + k]} *
                          weights[std::size_t{output} * shape.columns + k];
      sum.value += term;
      sum.magnitude += std::abs(term);
    }
    const double scale = (shape.deferred ? row_scale(row) : 1.0) * shape.scale;
    const double shift = shape.bias ? double{bias[output]} * shape.scale : 0.0;
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
        next_sums_(std::size_t{std::max(count, kCallRows)} * norm_parts(problem.columns_out())) {
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
        return linear.gate(op, in, weight, bias,
                           {problem_.shape.activation, scratch_.data(), elements_.data()});
      case Epilogue::Add:
        deferred_ =
            linear.add(op, in, weight, bias, {floats_.data(), problem_.shape.scale, next()});
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
    if (!next_is_asked(problem_.shape)) return {};
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
  explicit Bench(bool plain = false) : workspace(LinearCuda::workspace_bytes(true)) {
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
  // Then products of any number of rows are the few-rows kernel's.
  void set_batch_invariant() {
    batch_invariant = true;
    linear->set_batch_invariant(true);
  }
  Outputs run(const Problem& problem) { return run(problem, 0, problem.shape.rows); }
  bool defers(const Case& c) const {
    const WeightShape shape = c.matrix();
    return linear->defers(c.rows, c.dtype,
                          {nullptr, shape.num_rows, shape.num_columns, shape.format});
  }

  TestDevice device;
  DeviceBuffer<std::byte> workspace;
  CudaOp op{};
  std::unique_ptr<LinearCuda> linear;
  bool batch_invariant = false;
};

inline double rounding(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1p-8 : 0x1p-11; }

// Sums in float: 1e-5 of the terms' magnitudes; the rest is rounding to elements.
constexpr double kSumError = 1e-5;
// Of codes, the tensor cores add 32 products at a time, each cut off 13 bits below the largest of
// them: up to 32 * 2^-13 of that one, which has half of the magnitudes in the worst of some
// thousand random rows and mostly less than an eighth.
constexpr double kCodedSumError = 0x1p-9;
constexpr double kTiny = 1e-6;  // below the smallest step of f16

}  // namespace inferno::ops::cuda::test
