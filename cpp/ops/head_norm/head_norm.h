// Root mean square normalisation of the heads of queries and keys before they are turned. Henry et
// al., "Query-Key Normalization for Transformers", 2020; per head as in Qwen 3 and Gemma 3, over
// the whole row as in OLMo 2 (one head as wide as the row), without a weight as in Llama 4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct HeadNormArgs {
  float* x;                  // [T, num_heads, width] in place; rows of T are row_stride apart
  std::size_t row_stride;    // in elements, at least num_heads * width
  const float* weight;       // [width], the same for every head, or null: 1
  float eps;                 // added to the mean of squares
  std::uint32_t num_tokens;  // T
  std::uint32_t num_heads;
  std::uint32_t width;  // usually head_dim
};

// x[t, h, i] = x[t, h, i] / sqrt(mean(x[t, h, :]^2) + eps) * weight[i], with the bits of rms_norm
// of that row.
void head_norm(const OpContext& context, const HeadNormArgs& args);

}  // namespace inferno::ops
