// Rotary position embedding. Su et al., "RoFormer", 2021; in the half-split order of most Hugging
// Face checkpoints (element i of a head turns together with element i + rotary_dim / 2), or in the
// paper's own order, interleaved (2i together with 2i + 1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct RopeAnglesArgs {
  std::span<const float> inv_freq;           // [rotary_dim / 2], scaled for the context already
  float scale;                               // YaRN's and LongRoPE's attention factor; 1: none
  std::span<const std::uint32_t> positions;  // [T]
  float* cos_sin;                            // [T, 2, rotary_dim / 2]
};

// Cosines and sines for one step, shared by its layers: cos_sin[t] holds the cosines, then the
// sines, of the float product positions[t] * inv_freq, times scale.
void rope_angles(const OpContext& context, const RopeAnglesArgs& args);

struct RopeArgs {
  float* x;                // [T, num_heads, head_dim] in place; rows of T are row_stride apart
  std::size_t row_stride;  // in elements, at least num_heads * head_dim
  const float* cos_sin;    // [T, 2, rotary_dim / 2] from rope_angles
  std::uint32_t num_tokens;
  std::uint32_t num_heads;  // q and k heads that lie side by side can be turned by one call
  std::uint32_t head_dim;
  std::uint32_t rotary_dim;  // even, at most head_dim: the first of a head turn, the others stay
  bool interleaved = false;
  // [T], or null: none. Every element of a token's heads, turned or not, is multiplied by it, as
  // Ministral 3 does with queries.
  const float* head_scale = nullptr;
};

// With R = rotary_dim and (a, b) = (i, i + R/2), or (2i, 2i + 1) where interleaved, for i < R/2:
// x[t, h, a] = x[t, h, a] * cos[t, i] - x[t, h, b] * sin[t, i]
// x[t, h, b] = x[t, h, b] * cos[t, i] + x[t, h, a] * sin[t, i]
// then x[t, h, :] *= head_scale[t]. Throws other for a rotary_dim that is odd or above head_dim.
void rope(const OpContext& context, const RopeArgs& args);

}  // namespace inferno::ops
