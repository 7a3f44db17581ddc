// The gated linear unit of an MLP: the activation of its gate times its up. Shazeer, "GLU Variants
// Improve Transformer", 2020.
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"
#include "ops/glu/activation.h"

namespace inferno::ops {

struct GluArgs {
  const float* gate_up;             // [T, 2, I]: a token's gate, then its up
  std::uint32_t num_tokens;         // T
  std::uint32_t intermediate_size;  // I
  Activation activation;
  float* out;  // [T, I]
};

// out[t, i] = activation(gate, up), with gate = gate_up[t, 0, i] and up = gate_up[t, 1, i].
void glu(const OpContext& context, const GluArgs& args);

}  // namespace inferno::ops
