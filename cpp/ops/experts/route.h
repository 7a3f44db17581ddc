// The router of a mixture of experts: which experts each token goes to, and with what weights.
// Softmax over all experts, then the best k: Jiang et al., "Mixtral of Experts", 2024; Yang et al.,
// "Qwen3 Technical Report", 2025. The best k logits, then softmax over these: gpt-oss, 2025.
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

// A router of sigmoids (DeepSeek-V3) would be a kind of its own, with a bias [E] that counts for
// the choice only.
enum class RouterKind : std::uint8_t {
  SoftmaxTopK,  // softmax over all experts; of these weights the k largest
  TopKSoftmax,  // the k largest logits; softmax over these
};

struct RouteRule {
  RouterKind kind = RouterKind::SoftmaxTopK;
  std::uint32_t num_experts = 0;        // E
  std::uint32_t experts_per_token = 0;  // k, at least 1 and at most E
  bool renormalise = false;             // of SoftmaxTopK: the chosen weights, divided by their sum
  float routed_scale = 1;               // times every weight
};

struct RouteArgs {
  const float* logits;       // [T, E]: what the router's linear layer gives, bias included
  std::uint32_t num_tokens;  // T
  RouteRule rule;
  std::uint32_t* expert_ids;  // [T, k] all different, the largest logit first
  float* weights;             // [T, k]
};

// Of equal logits the lower expert's ranks first. Computed in float. A NaN ranks last and makes all
// weights of its token NaN where it is among what softmax is taken over; ids are below E always.
void route(const OpContext& context, const RouteArgs& args);

// What the rule allows: throws std::invalid_argument ("other: …") for a k that is none.
void check_route_rule(const RouteRule& rule);

}  // namespace inferno::ops
