// For tests: the activations of activation.h in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/glu/activation.h"

namespace inferno::ops::test {

inline double activated(const Activation& activation, double gate, double up) {
  switch (activation.kind) {
    case ActivationKind::Silu:
      return gate / (1 + std::exp(-gate)) * up;
    case ActivationKind::GeluTanh: {
      const double inner = std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
      return gate / 2 * (1 + std::tanh(inner)) * up;
    }
    case ActivationKind::ClampedSilu: {
      const double limit = activation.limit;
      const double g = std::min(gate, limit);
      return g / (1 + std::exp(-activation.alpha * g)) * (std::clamp(up, -limit, limit) + 1);
    }
  }
  return 0;
}

}  // namespace inferno::ops::test
