// Gates that let through a part of what they stand before: of attention's output, one for each
// element (Qiu et al., "Gated Attention for Large Language Models", 2025); of an expert that all
// tokens share, one for each token (Qwen Team, "Qwen1.5-MoE", 2024).
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct SigmoidGateArgs {
  const float* gates;        // [T, G]
  std::uint32_t num_tokens;  // T
  std::uint32_t num_gates;   // G
  std::uint32_t width;       // W: the elements behind a gate
  float* x;                  // [T, G, W] in place
};

// x[t, g, i] *= sigmoid(gates[t, g]). A token's bits depend on its own row only.
void sigmoid_gate(const OpContext& context, const SigmoidGateArgs& args);

}  // namespace inferno::ops
