// What a layer of attention does to its scores beside softmax; the same on every backend.
#pragma once

#include <cstdint>

namespace inferno::ops {

struct AttentionRule {
  float scale = 1.0F;  // of the scores, usually 1 / sqrt(head_dim)
  // Positions that a token sees, its own included; 0: all. Beltagy et al., "Longformer", 2020.
  std::uint32_t window = 0;
  float softcap = 0.0F;  // score = softcap * tanh(score / softcap), as in Gemma 2; 0: none
  // [num_heads], in the device's memory: a score of each head's own with no value behind it, which
  // takes its share of the softmax. Xiao et al., "Attention Sinks", 2023; learned in gpt-oss. Null:
  // none.
  const float* sinks = nullptr;

  // The first position that the token at `position` sees.
  constexpr std::uint32_t first_seen(std::uint32_t position) const {
    return window == 0 || position < window ? 0 : position - window + 1;
  }
};

}  // namespace inferno::ops
