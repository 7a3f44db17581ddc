// Gated linear units on the GPU: glu.h for elements of 16 bits, computed in float and rounded once.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/glu/activation.h"

namespace inferno::ops::cuda {

struct GluCudaArgs {
  const void* gate_up = nullptr;        // [T, 2, I]: a token's gate, then its up
  std::uint32_t num_tokens = 0;         // T
  std::uint32_t intermediate_size = 0;  // I, a multiple of 8
  Activation activation{};
  Dtype dtype = Dtype::BF16;
  void* out = nullptr;  // [T, I]
};

// out[t, i] = activation(gate_up[t, 0, i], gate_up[t, 1, i]), as activation.h defines it.
void glu_cuda(const CudaOp& op, const GluCudaArgs& args);

}  // namespace inferno::ops::cuda
