// The router of a mixture of experts on the GPU: route.h, one warp for each token.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/experts/route.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kMaxExperts = 256;
inline constexpr std::uint32_t kMaxExpertsPerToken = 32;

// The id of a choice that is none: of a token that only pads a batch.
inline constexpr std::uint32_t kNoExpert = 0xFFFFFFFF;

struct RouteCudaArgs {
  const float* logits = nullptr;  // [T, E]
  std::uint32_t num_tokens = 0;   // T
  RouteRule rule;                 // E up to kMaxExperts, k up to kMaxExpertsPerToken
  // Null, or [T] the slots of the tokens' keys and values: a token that has none (kNoSlot) is
  // padding and goes nowhere; all its ids are kNoExpert and its weights 0.
  const std::uint32_t* slots = nullptr;
  std::uint32_t* expert_ids = nullptr;  // [T, k]
  float* weights = nullptr;             // [T, k]
  // Of Sigmoid: [E], or null. Weights of the model: not written by a kernel.
  const float* score_correction = nullptr;
};

// The same ids as route gives where no two ranks are within a rounding of each other, and weights
// within a few roundings of its.
void route_cuda(const CudaOp& op, const RouteCudaArgs& args);

}  // namespace inferno::ops::cuda
