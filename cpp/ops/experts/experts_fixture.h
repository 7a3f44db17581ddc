// For the tests of experts: random problems and their answers in float64, plainly.
#pragma once

#include <numeric>

#include "ops/base/test_support.h"
#include "ops/experts/experts.h"
#include "ops/experts/route.h"

namespace inferno::ops::test {

inline double activated_double(const Activation& activation, double gate, double up) {
  switch (activation.kind) {
    case ActivationKind::Silu:
      return gate / (1.0 + std::exp(-gate)) * up;
    case ActivationKind::GeluTanh:
      return gate / 2 *
             (1.0 +
              std::tanh(std::sqrt(2 / std::acos(-1.0)) * (gate + 0.044715 * std::pow(gate, 3)))) *
             up;
    case ActivationKind::ClampedSilu:
      break;
  }
  const double limit = activation.limit;
  const double g = std::min(gate, limit);
  return g / (1.0 + std::exp(-double{activation.alpha} * g)) * (std::clamp(up, -limit, limit) + 1);
}

inline constexpr Activation kActivations[] = {{ActivationKind::Silu, 1, 0},
                                              {ActivationKind::GeluTanh, 1, 0},
                                              {ActivationKind::ClampedSilu, 1.702F, 1.25F}};

// How tokens are spread over experts.
enum class Spread { Random, AllOnOne, SomeUnused };

struct ExpertsCase {
  std::uint32_t tokens = 1;
  ExpertsShape shape;
  Dtype dtype = Dtype::BF16;
  bool bias = false;
  Activation activation;
  Spread spread = Spread::Random;
};

// One token's row in float64, and what its errors are measured by.
struct ExpertsAnswer {
  explicit ExpertsAnswer(std::size_t width) : y(width), terms(width, 1e-30), loose(width, 1e-30) {}
  std::vector<double> y;
  std::vector<double>
      terms;  // the magnitudes of down's terms: of these, roundings between products
  std::vector<double> loose;  // the same with all magnitudes before: of these, sums in float
};

// A random problem on the host: matrices as the device has them, [E, N, K] row-major.
struct ExpertsProblem {
  ExpertsCase c;
  std::vector<float> h, gate_up, down, gate_up_bias, down_bias, weights;
  std::vector<std::uint32_t> ids;
  std::vector<double> row_scales;  // [T] of what products read

  ExpertsProblem(const ExpertsCase& problem, Random& random) : c(problem) {
    const std::size_t wide = std::size_t{2} * c.shape.intermediate_size;
    const std::size_t hidden = c.shape.hidden_size;
    h = random.normals(c.tokens * hidden);
    row_scales.assign(c.tokens, 1.0);
    const auto matrices = [&](std::size_t rows, std::size_t columns) {
      std::vector<float> values = random.normals(c.shape.num_experts * rows * columns);
      const float factor = 1.0F / std::sqrt(static_cast<float>(columns));
      for (float& value : values) value = rounded(value * factor, c.dtype);
      return values;
    };
    gate_up = matrices(wide, hidden);
    down = matrices(hidden, c.shape.intermediate_size);
    gate_up_bias = random.normals(c.shape.num_experts * wide);
    down_bias = random.normals(c.shape.num_experts * hidden);
    for (std::uint32_t t = 0; t < c.tokens; ++t) choose(random);
  }

  // k different experts for the next token.
  void choose(Random& random) {
    const std::uint32_t used = c.spread == Spread::SomeUnused
                                   ? std::max(c.shape.experts_per_token, c.shape.num_experts / 2)
                                   : c.shape.num_experts;
    std::vector<std::uint32_t> order(used);
    std::iota(order.begin(), order.end(), 0U);
    if (c.spread != Spread::AllOnOne) random.shuffle(order);
    for (std::uint32_t i = 0; i < c.shape.experts_per_token; ++i) {
      ids.push_back(order[i]);
      weights.push_back(0.05F + 0.1F * static_cast<float>(random.integer(0, 9)));
    }
  }

  // `between`: what the inputs of products are rounded to; F32 for not at all.
  ExpertsAnswer reference(std::uint32_t t, Dtype between) const {
    ExpertsAnswer answer(c.shape.hidden_size);
    for (std::uint32_t i = 0; i < c.shape.experts_per_token; ++i) {
      const std::size_t at = std::size_t{t} * c.shape.experts_per_token + i;
      add_expert(t, ids[at], weights[at], between, answer);
    }
    return answer;
  }

 private:
  struct Sum {
    double value, magnitude;
  };
  static Sum product(const float* w, const auto* x, std::size_t length, double bias) {
    Sum sum{bias, std::abs(bias)};
    for (std::size_t i = 0; i < length; ++i) {
      const double term = double{w[i]} * x[i];
      sum.value += term;
      sum.magnitude += std::abs(term);
    }
    return sum;
  }

  void add_expert(std::uint32_t t, std::size_t e, double weight, Dtype between,
                  ExpertsAnswer& answer) const {
    const std::size_t hidden = c.shape.hidden_size;
    const std::size_t inner = c.shape.intermediate_size;
    std::vector<double> x(h.begin() + t * hidden, h.begin() + (t + 1) * hidden);
    for (double& value : x) value = rounded(static_cast<float>(value), between) * row_scales[t];
    const auto wide = [&](std::size_t row) {
      const double bias = c.bias ? gate_up_bias[e * 2 * inner + row] : 0.0;
      return product(&gate_up[(e * 2 * inner + row) * hidden], x.data(), hidden, bias);
    };
    std::vector<double> gated(inner);
    std::vector<double> loose(inner);
    for (std::size_t i = 0; i < inner; ++i) {
      const Sum gate = wide(i);
      const Sum up = wide(inner + i);
      const double exact = activated_double(c.activation, gate.value, up.value);
      gated[i] = between == Dtype::F32 ? exact : rounded(static_cast<float>(exact), between);
      loose[i] = (1 + gate.magnitude) * (1 + up.magnitude);
    }
    for (std::size_t n = 0; n < hidden; ++n) {
      const float* row = &down[(e * hidden + n) * inner];
      const double bias = c.bias ? down_bias[e * hidden + n] : 0.0;
      const Sum sum = product(row, gated.data(), inner, bias);
      answer.y[n] += weight * sum.value;
      answer.terms[n] += weight * sum.magnitude;
      answer.loose[n] += weight * product(row, loose.data(), inner, bias).magnitude;
    }
  }
};

}  // namespace inferno::ops::test
