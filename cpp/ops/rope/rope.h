// Rotary position embedding. Su et al., "RoFormer", 2021; in the half-split order of Hugging Face
// checkpoints: element i of a head turns together with element i + head_dim / 2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/base/op_context.h"

namespace inferno::ops {

enum class RopeScaling : std::uint8_t {
  None,
  Linear,  // every frequency divided by factor
  Llama3,  // Llama 3.1: long waves divided by factor, short ones kept, a ramp between
};

struct RopeConfig {
  std::uint32_t head_dim;  // even
  float theta;
  RopeScaling scaling;
  float factor;                          // Linear, Llama3
  float low_freq_factor;                 // Llama3
  float high_freq_factor;                // Llama3
  std::uint32_t original_max_positions;  // Llama3
};

// Fills inv_freq [head_dim / 2]: theta^(-2i / head_dim), scaled, in float arithmetic as
// `transformers` does it (_compute_llama3_parameters and its neighbours). Throws other for an odd
// head_dim, a span of another length, or factors out of range (factor below 1, high not above low).
void rope_inv_freq(const RopeConfig& config, std::span<float> inv_freq);

// Cosines and sines for one step, shared by its layers: cos_sin [T, 2, head_dim / 2], cosines
// first, of the float product position * inv_freq. positions [T]; inv_freq [head_dim / 2].
void rope_angles(const OpContext& context, std::span<const float> inv_freq,
                 std::span<const std::uint32_t> positions, float* cos_sin);

struct RopeArgs {
  float* x;                // [T, num_heads, head_dim] in place; rows of T are row_stride apart
  std::size_t row_stride;  // in elements, at least num_heads * head_dim
  const float* cos_sin;    // [T, 2, head_dim / 2] from rope_angles
  std::uint32_t num_tokens;
  std::uint32_t num_heads;  // q and k heads that lie side by side can be turned by one call
  std::uint32_t head_dim;
};

// x[t, h, i]       = x[t, h, i] * cos[t, i] - x[t, h, i + D/2] * sin[t, i]
// x[t, h, i + D/2] = x[t, h, i + D/2] * cos[t, i] + x[t, h, i] * sin[t, i]      for i < D/2
void rope(const OpContext& context, const RopeArgs& args);

}  // namespace inferno::ops
