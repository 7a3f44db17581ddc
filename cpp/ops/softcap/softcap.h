// What follows the product that makes the logits. Soft-cap: Bello et al., "Neural Combinatorial
// Optimization", 2016, and Gemma 2; scale: Cohere and Granite.
#pragma once

#include <cstddef>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct SoftcapArgs {
  float* logits;      // [count] in place
  std::size_t count;  // R * V, for R rows of a vocabulary
  float scale;        // 1: none
  float cap;          // 0: none
};

// logits = cap * tanh(scale * logits / cap), or scale * logits where cap is 0. A NaN stays one.
void softcap(const OpContext& context, const SoftcapArgs& args);

}  // namespace inferno::ops
