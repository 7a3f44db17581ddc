// Random weights in a quantized matrix, made on the device: codes drawn evenly and one scale.
#pragma once

#include "ops/cuda/cuda_op.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops::cuda {

struct RandomCodesArgs {
  WeightShape matrix{};      // of a format that has_code_layout
  std::uint64_t key = 0;     // stream of the tensor
  float deviation = 0;       // of the weights
  std::byte* out = nullptr;  // in the layout of code_layout.h
};

void random_codes_cuda(const CudaOp& op, const RandomCodesArgs& args);

}  // namespace inferno::ops::cuda
