// The small kernels around cuBLASLt's products.
#pragma once

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct AddBiasArgs {
  const float* bias = nullptr;  // [N]
  std::uint32_t num_tokens = 0;
  std::uint32_t num_outputs = 0;  // N
  Dtype dtype = Dtype::BF16;      // of y; F32 too
  float scale = 1;                // of the bias
  void* y = nullptr;              // [T, N] += scale * bias
};

void add_bias_cuda(const CudaOp& op, const AddBiasArgs& args);

}  // namespace inferno::ops::cuda
