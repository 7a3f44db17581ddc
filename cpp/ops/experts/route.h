// The router of a mixture of experts: which experts each token goes to, and with what weights.
// Softmax over all experts, then the best k: Jiang et al., "Mixtral of Experts", 2024; Yang et al.,
// "Qwen3 Technical Report", 2025. The best k logits, then softmax over these: gpt-oss, 2025.
// Sigmoids, whose choice a bias balances: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024.
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

enum class RouterKind : std::uint8_t {
  SoftmaxTopK,  // softmax over all experts; of these weights the k largest
  TopKSoftmax,  // the k largest logits; softmax over these
  Sigmoid,      // sigmoid of each; the k largest with the score correction, without it as weights
};

// Added to the sum that sigmoids are divided by, which may vanish; DeepSeek-V3's.
inline constexpr float kLeastScoreSum = 1e-20F;

struct RouteRule {
  RouterKind kind = RouterKind::SoftmaxTopK;
  std::uint32_t num_experts = 0;        // E
  std::uint32_t experts_per_token = 0;  // k, at least 1 and at most E
  // Not of TopKSoftmax: the chosen weights, divided by their sum.
  bool renormalise = false;
  float routed_scale = 1;  // times every weight
};

struct RouteArgs {
  const float* logits;       // [T, E]: what the router's linear layer gives, bias included
  std::uint32_t num_tokens;  // T
  RouteRule rule;
  std::uint32_t* expert_ids;                // [T, k] all different, the best first
  float* weights;                           // [T, k]
  const float* score_correction = nullptr;  // of Sigmoid: [E], or null for none
};

// Experts rank by their logits, of Sigmoid by score + correction; of equals the lower expert ranks
// first. Computed in float. A NaN ranks last and makes all weights of its token NaN where it is
// among what softmax, or the sum, is taken over; ids are below E always.
void route(const OpContext& context, const RouteArgs& args);

// What the rule allows: throws std::invalid_argument ("other: …") for a k that is none.
void check_route_rule(const RouteRule& rule);

}  // namespace inferno::ops
