// Columns of the inputs in a matrix's order on the GPU: gather_columns.h for elements of 16 bits.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct GatherColumnsCudaArgs {
  const void* x = nullptr;               // [T, K] elements of 16 bits
  std::uint32_t num_tokens = 0;          // T
  std::uint32_t num_columns = 0;         // K, a multiple of 8
  const std::uint32_t* order = nullptr;  // [K], each below K; aligned to 32 bytes
  void* out = nullptr;                   // [T, K]; not x
};

// out[t, k] = x[t, order[k]].
void gather_columns_cuda(const CudaOp& op, const GatherColumnsCudaArgs& args);

}  // namespace inferno::ops::cuda
