// Root mean square normalisation of spans of rows, in place: the norm of a token's whole q or k
// (OLMo 2 and 3), or of each of its heads where no rope follows. Elements of 16 bits, computed in
// float and rounded once; a span's bits depend on this span only. Heads that rope turns are
// normalised by rope_kv_cuda.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct HeadNormCudaArgs {
  void* x = nullptr;              // the first span, of elements: qkv, or where k begins in it
  std::size_t row_stride = 0;     // elements between two tokens' spans; a multiple of 8
  const float* weight = nullptr;  // [width], the same for every head, or null: no weight
  float eps = 0;
  std::uint32_t num_tokens = 0;  // T
  std::uint32_t num_heads = 1;   // spans of a token, side by side
  std::uint32_t width = 0;       // of a span; a multiple of 8 up to kMaxHiddenSize
  Dtype dtype = Dtype::BF16;
};

// x[t, h, i] = x[t, h, i] / sqrt(mean(x[t, h, :]^2) + eps) * weight[i].
void head_norm_cuda(const CudaOp& op, const HeadNormCudaArgs& args);

}  // namespace inferno::ops::cuda
