// What a layer does to its attention scores beside the softmax.
#pragma once

#include <cstdint>

namespace inferno::ops {

// score = scale * q.k; with a soft-cap c > 0 it becomes c * tanh(score / c) (Gemma Team, "Gemma 2",
// 2024). With a window > 0 a token at position t sees positions t - window + 1 to t only (Beltagy
// et al., "Longformer", 2020). A sink is one more score of a head, which takes part in the softmax
// and has no value (gpt-oss; Xiao et al., "Efficient streaming language models with attention
// sinks", 2023).
struct AttentionRule {
  float scale;
  std::uint32_t window = 0;
  float softcap = 0;
  const float* sinks = nullptr;  // [num_heads], where the queries are; null: none
};

}  // namespace inferno::ops
