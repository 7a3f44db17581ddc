// Root mean square normalisation on the GPU: rms_norm.h, for outputs of 16 bits computed in float
// and rounded once. A row's bits depend on this row only.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

// What a row may be wide: a block keeps it in registers. H is a multiple of 8.
inline constexpr std::uint32_t kMaxHiddenSize = 16384;

// How an op normalises rows that it has at hand.
struct RowNorm {
  bool normalise = false;         // else rows stay as they are
  const float* weight = nullptr;  // [width], or null: no weight
  float eps = 0;
};

struct RmsNormCudaArgs {
  const float* x = nullptr;             // [*, H]
  const std::uint32_t* rows = nullptr;  // [T] row of x for each row of out, or null: row t
  const float* weight = nullptr;        // [H], or null: no weight
  float eps = 0;
  std::uint32_t num_tokens = 0;   // T
  std::uint32_t hidden_size = 0;  // H
  Dtype dtype = Dtype::BF16;      // of out
  void* out = nullptr;            // [T, H]
};

void rms_norm_cuda(const CudaOp& op, const RmsNormCudaArgs& args);

}  // namespace inferno::ops::cuda
