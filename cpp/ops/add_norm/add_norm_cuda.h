// The residual stream between two parts of a decoder in one launch, where the product could not add
// to it: a norm of what is added (Gemma, OLMo), a norm that no product defers. The contract is that
// of the CPU's ops one after the other; float, rounded once where h is written. A row's bits depend
// on this row only.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {

struct AddNormCudaArgs {
  float* x = nullptr;        // [T, H] the residual stream, in place
  const float* y = nullptr;  // [T, H] what a part computed
  float scale = 1;           // of what is added
  RowNorm post{};            // of y, before it is added
  RowNorm next{};            // of the new x, in h
  void* h = nullptr;         // [T, H] elements, or null: nothing is left but x
  std::uint32_t num_tokens = 0;
  std::uint32_t hidden_size = 0;  // a multiple of 8 up to kMaxHiddenSize
  Dtype dtype = Dtype::BF16;      // of h
};

// x += scale * post(y); h = next(x).
void add_norm_cuda(const CudaOp& op, const AddNormCudaArgs& args);

}  // namespace inferno::ops::cuda
