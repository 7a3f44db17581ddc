// The activations of gated linear units. Shazeer, "GLU Variants Improve Transformer", 2020.
#pragma once

#include <cstdint>

namespace inferno::ops {

enum class ActivationKind : std::uint8_t {
  Silu,         // gate / (1 + exp(-gate)) * up
  GeluTanh,     // gelu(gate) * up, gelu(g) = g / 2 * (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3)))
  ClampedSilu,  // gpt-oss: g / (1 + exp(-alpha g)) * (u + 1), g = min(gate, limit) and
                // u = clamp(up, -limit, limit)
};

struct Activation {
  ActivationKind kind = ActivationKind::Silu;
  float alpha = 1;  // of ClampedSilu
  float limit = 0;  // of ClampedSilu, above 0
};

}  // namespace inferno::ops
