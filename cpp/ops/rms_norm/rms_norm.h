// Root mean square normalisation. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct RmsNormArgs {
  const float* x;             // [T, H]
  const float* weight;        // [H], or null: 1, as in OLMo and nanochat
  float eps;                  // added to the mean of squares
  std::uint32_t num_tokens;   // T
  std::uint32_t hidden_size;  // H
  float* out;                 // [T, H]; may be x itself
};

// out[t, i] = x[t, i] / sqrt(mean(x[t, :]^2) + eps) * weight[i].
// Sum: 16 running sums, of the columns i with the same i % 16, then added pairwise.
void rms_norm(const OpContext& context, const RmsNormArgs& args);

struct NormRow {
  const float* weight;  // [size], or null: 1
  float eps;
  std::uint32_t size;
};

// rms_norm of one row, for other ops: out [size] from x [size]; out may be x.
void normalize_row(const NormRow& norm, const float* x, float* out);

}  // namespace inferno::ops
