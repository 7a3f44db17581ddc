// What a gated MLP makes of its gate and its up; the same on every backend.
#pragma once

#include <cstdint>

namespace inferno::ops {

enum class ActivationKind : std::uint8_t {
  Silu,         // gate * sigmoid(gate) * up: SwiGLU, as in Llama
  GeluTanh,     // gelu(gate) * up in its tanh form: GEGLU, as in Gemma
  ClampedSilu,  // g * sigmoid(alpha * g) * (u + 1), as in gpt-oss
};

// gelu(g) = g / 2 * (1 + tanh(z / 2)) = g * sigmoid(z), z = 2 * sqrt(2 / pi) * (g + 0.044715 g^3):
// Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
struct Activation {
  ActivationKind kind = ActivationKind::Silu;
  // Of ClampedSilu: g = min(gate, limit), u = up between -limit and limit.
  float alpha = 1.0F;
  float limit = 0.0F;
};

}  // namespace inferno::ops
