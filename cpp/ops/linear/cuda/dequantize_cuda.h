// Rows of a quantized matrix as elements, for what multiplies only those.
#pragma once

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct DequantizeArgs {
  DeviceMatrix weight;          // of a format that has_code_layout
  std::uint32_t first_row = 0;  // a multiple of 8
  std::uint32_t num_rows = 0;
  Dtype dtype = Dtype::BF16;  // of out
  void* out = nullptr;        // [num_rows, num_columns]
};

// A weight is computed in float and rounded once.
void dequantize_cuda(const CudaOp& op, const DequantizeArgs& args);

}  // namespace inferno::ops::cuda
