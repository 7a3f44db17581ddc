// The last step to logits on the GPU: their multiplier (Granite) and their soft cap (Gemma).
#pragma once

#include <cstddef>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct SoftcapCudaArgs {
  float* logits = nullptr;  // [count] in place: all rows together
  std::size_t count = 0;
  float scale = 1;
  float cap = 0;  // 0: none
};

// logits = cap * tanh(scale * logits / cap), or scale * logits. Within 2^-21 of the value.
void softcap_cuda(const CudaOp& op, const SoftcapCudaArgs& args);

}  // namespace inferno::ops::cuda
