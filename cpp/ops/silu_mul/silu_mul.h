// The gated activation of a Llama MLP. Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU).
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct SiluMulArgs {
  const float* gate_up;             // [T, 2, I]: a token's gate, then its up
  std::uint32_t num_tokens;         // T
  std::uint32_t intermediate_size;  // I
  float* out;                       // [T, I]
};

// out[t, i] = gate / (1 + exp(-gate)) * up, with gate = gate_up[t, 0, i] and up = gate_up[t, 1, i].
void silu_mul(const OpContext& context, const SiluMulArgs& args);

}  // namespace inferno::ops
