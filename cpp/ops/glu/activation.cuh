// The activations of activation.h on the GPU, for results of 16 bits.
#pragma once

#include "ops/glu/activation.h"

namespace inferno::ops::cuda {

// Every activation is value / (1 + exp(-exponent)) * factor. A constant kind leaves nothing of the
// others.
__device__ __forceinline__ float activated_as(ActivationKind kind, const Activation& activation,
                                              float gate, float up) {
  float value = gate;
  float exponent = gate;
  float factor = up;
  if (kind == ActivationKind::GeluTanh) {
    // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)), with z = sqrt(2 / pi) (gate + 0.044715 gate^3).
    exponent = 1.5957691216F * gate * (1.0F + 0.044715F * gate * gate);
  } else if (kind == ActivationKind::ClampedSilu) {
    // Comparisons, which keep a NaN; fminf and fmaxf would not.
    const float limit = activation.limit;
    value = gate > limit ? limit : gate;
    exponent = activation.alpha * value;
    factor = 1.0F + (up > limit ? limit : up < -limit ? -limit : up);
  }
  // The fast exponential and quotient: their errors, a few 2^-23, vanish in elements of 16 bits,
  // and the accurate ones would take longer than the memory.
  return __fdividef(value, 1.0F + __expf(-exponent)) * factor;
}

__device__ __forceinline__ float activated(const Activation& activation, float gate, float up) {
  return activated_as(activation.kind, activation, gate, up);
}

}  // namespace inferno::ops::cuda
