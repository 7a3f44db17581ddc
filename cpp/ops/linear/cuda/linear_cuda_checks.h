// Whether a product's outputs are what float64 makes of its inputs.
#pragma once

#include <cmath>
#include <string>

#include "ops/glu/glu_fixture.h"
#include "ops/linear/cuda/linear_cuda_fixture.h"

namespace inferno::ops::cuda::test {

// Largest error in units of what is allowed.
struct Worst {
  double value = 0;
  void see(double got, double expected, double allowed) {
    const double error = std::abs(got - expected) / allowed;
    if (!(error <= value)) value = std::isnan(error) ? 1e30 : error;
  }
};

// Of the terms' magnitudes. Many rows of a quantized matrix are multiplied with rounded weights.
inline double sum_error(const Problem& p) {
  if (p.shape.coded() || p.shape.split()) return kCodedSumError;
  const bool rounds =
      p.shape.format.is_quantized() && p.shape.rows > kMaxFewCodeRows && !p.shape.few;
  return rounds ? kSumError + rounding(p.shape.dtype) : kSumError;
}

// Of gate or up: rounded to elements, and where there is a bias, before it and after it.
inline double gated_error(const Problem& p, const Sum& sum, std::uint32_t output) {
  const double value = std::abs(sum.value);
  const double rounded_sizes = p.shape.bias ? 2 * value + std::abs(p.bias[output]) : value;
  return rounding(p.shape.dtype) * rounded_sizes + sum_error(p) * sum.magnitude + kTiny;
}

// Beyond it an f16 may be infinite, and rightly.
constexpr double kSafeHalf = 6e4;

inline double worst_gated(const Problem& p, const Outputs& outputs) {
  const double eps = rounding(p.shape.dtype);
  Worst worst;
  for (std::uint32_t t = 0; t < p.shape.rows; ++t) {
    for (std::uint32_t n = 0; n < p.columns_out(); ++n) {
      const Sum gate = p.product(t, n);
      const Sum up = p.product(t, p.columns_out() + n);
      const double gated = ops::test::activated(p.shape.activation, gate.value, up.value);
      if (p.shape.dtype == Dtype::F16 && std::abs(gated) > kSafeHalf) continue;
      const double gate_error = gated_error(p, gate, n);
      const double up_error = gated_error(p, up, p.columns_out() + n);
      // No activation of a gate is steeper than 1.2; ClampedSilu multiplies it by up + 1.
      const double allowed = eps * std::abs(gated) + 1.2 * gate_error * (std::abs(up.value) + 1) +
                             up_error * std::abs(gate.value) + 1.2 * gate_error * up_error + kTiny;
      worst.see(outputs.out[std::size_t{t} * p.columns_out() + n], gated, allowed);
    }
  }
  return worst.value;
}

inline double worst_sums(const Problem& p, const Outputs& outputs) {
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
      const double allowed = eps * rounded_size + sum_error(p) * (sum.magnitude + 1) + kTiny;
      worst.see(outputs.out[at], sum.value, allowed);
    }
  }
  return worst.value;
}

// What is left for the next norm, judged by the x that was left.
inline double worst_next(const Problem& p, const Outputs& outputs) {
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

inline void check_right(Bench& bench, const Case& c, std::uint32_t seed) {
  CAPTURE(c.rows);
  CAPTURE(c.outputs);
  CAPTURE(c.columns);
  CAPTURE(static_cast<int>(c.epilogue));
  CAPTURE(std::string(dtype_name(c.dtype)));
  CAPTURE(c.bias);
  CAPTURE(c.deferred);
  CAPTURE(c.scale);
  CAPTURE(static_cast<int>(c.activation.kind));
  CAPTURE(std::string(weight_kind_name(c.matrix().format.kind)));
  CAPTURE(c.format.group);
  CAPTURE(c.format.offsets);
  const Problem problem(c, seed);
  const Outputs outputs = bench.run(problem);
  CHECK(outputs.guards_are_whole);
  if (c.epilogue == Epilogue::Gate) {
    CHECK(worst_gated(problem, outputs) <= 1.0);
    return;
  }
  CHECK(worst_sums(problem, outputs) <= 1.0);
  if (c.epilogue == Epilogue::Add) CHECK(outputs.deferred == (bench.defers(c) && next_is_asked(c)));
  if (c.epilogue == Epilogue::Add && next_is_asked(c)) CHECK(worst_next(problem, outputs) <= 1.0);
}

}  // namespace inferno::ops::cuda::test
