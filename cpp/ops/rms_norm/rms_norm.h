// Root mean square normalisation. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct RmsNormArgs {
  const float* x;             // [T, H]
  const float* weight;        // [H]
  float eps;                  // added to the mean of squares
  std::uint32_t num_tokens;   // T
  std::uint32_t hidden_size;  // H
  float* out;                 // [T, H]; may be x itself
};

// out[t, i] = x[t, i] / sqrt(mean(x[t, :]^2) + eps) * weight[i].
// Sum: 16 running sums, of the columns i with the same i % 16, then added pairwise.
void rms_norm(const OpContext& context, const RmsNormArgs& args);

struct AddRmsNormArgs {
  float* x;             // [T, H] the residual stream, in place: x += addend
  const float* addend;  // [T, H]
  const float* weight;  // [H]
  float eps;
  std::uint32_t num_tokens;
  std::uint32_t hidden_size;
  float* out;  // [T, H]; may be addend, not x
};

// x += addend; then out = rms_norm(x). The same bits as the two done one after the other.
void add_rms_norm(const OpContext& context, const AddRmsNormArgs& args);

}  // namespace inferno::ops
