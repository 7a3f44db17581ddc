// The MLP of a mixture of experts: each token goes through the experts that a router chose for it.
// Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
// Layer", 2017; the form with gated experts as in Mixtral, Qwen3-MoE and gpt-oss.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"
#include "ops/glu/activation.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops {

// The same matrix of every expert; non-owning. On the CPU each is packed (packed_weights.h), on a
// GPU row-major.
struct ExpertMatrix {
  const std::byte* data = nullptr;  // of expert 0
  std::size_t expert_stride = 0;    // bytes from one expert's matrix to the next
  WeightShape shape{};              // of one expert's: [N, K]
  const float* bias = nullptr;      // [E, N], or null for none
};

struct ExpertsShape {
  std::uint32_t num_experts = 0;        // E
  std::uint32_t experts_per_token = 0;  // k
  std::uint32_t hidden_size = 0;        // H
  std::uint32_t intermediate_size = 0;  // I
};

struct ExpertsWeights {
  ExpertMatrix gate_up;  // [2 I, H]: the gate's rows, then those of up
  ExpertMatrix down;     // [H, I]
  Activation activation;
};

struct ExpertsArgs {
  const float* h;            // [T, H]
  std::uint32_t num_tokens;  // T
  ExpertsShape shape;
  const std::uint32_t* expert_ids;  // [T, k] below E, those of a token all different
  const float* weights;             // [T, k]
  ExpertsWeights experts;
  float scale;      // of what is added
  float* y;         // [T, H]
  bool accumulate;  // y += the sum instead of y = the sum
};

// y[t] = (accumulate ? y[t] : 0) + scale * sum over the chosen experts e, in the order of their
// ids, of weight * down_e(activation(gate_e(h[t]), up_e(h[t]))); products as linear computes them.
// (An expert that all tokens share is a dense MLP beside these; see `accumulate`.)
//
// Weights of experts that nobody chose are not read. A token's bits depend on its own row, ids and
// weights only. Throws std::invalid_argument for an id that is none.
void experts(const OpContext& context, const ExpertsArgs& args);

// Workspace for up to max_tokens tokens, what the products need included.
std::size_t experts_workspace_bytes(const ExpertsShape& shape, std::uint32_t max_tokens,
                                    std::uint32_t num_threads) noexcept;

}  // namespace inferno::ops
