// The activations of activation.h on the GPU, for results of 16 bits.
#pragma once

#include "ops/glu/activation.h"

namespace inferno::ops::cuda {

// The fast exponential and quotient: their errors, a few 2^-23, vanish in elements of 16 bits, and
// the accurate ones would take longer than the memory.
__device__ __forceinline__ float times_sigmoid(float value, float exponent) {
  return __fdividef(value, 1.0F + __expf(-exponent));
}

template <ActivationKind kKind>
__device__ __forceinline__ float activated(const Activation& activation, float gate, float up) {
  if constexpr (kKind == ActivationKind::Silu) {
    return times_sigmoid(gate, gate) * up;
  } else if constexpr (kKind == ActivationKind::GeluTanh) {
    // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)), with z = sqrt(2 / pi) (gate + 0.044715 gate^3).
    const float twice = 1.5957691216F * gate * (1.0F + 0.044715F * gate * gate);
    return times_sigmoid(gate, twice) * up;
  } else {
    // Comparisons, which keep a NaN; fminf and fmaxf would not.
    const float limit = activation.limit;
    const float clamped_gate = gate > limit ? limit : gate;
    const float clamped_up = up > limit ? limit : up < -limit ? -limit : up;
    return times_sigmoid(clamped_gate, activation.alpha * clamped_gate) * (clamped_up + 1.0F);
  }
}

// By the kind that the whole grid has.
__device__ __forceinline__ float activated(const Activation& activation, float gate, float up) {
  switch (activation.kind) {
    case ActivationKind::GeluTanh:
      return activated<ActivationKind::GeluTanh>(activation, gate, up);
    case ActivationKind::ClampedSilu:
      return activated<ActivationKind::ClampedSilu>(activation, gate, up);
    default:
      return activated<ActivationKind::Silu>(activation, gate, up);
  }
}

}  // namespace inferno::ops::cuda
