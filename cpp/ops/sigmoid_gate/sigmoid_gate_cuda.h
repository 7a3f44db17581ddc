// Gates on the GPU: sigmoid_gate.h for elements of 16 bits, computed in float and rounded once.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct SigmoidGateCudaArgs {
  const void* gates = nullptr;   // [T, G] elements
  std::uint32_t num_tokens = 0;  // T
  std::uint32_t num_gates = 0;   // G
  std::uint32_t width = 1;       // W: 1, and G a multiple of 8; or a multiple of 8
  Dtype dtype = Dtype::BF16;
  void* x = nullptr;  // [T, G, W] elements, in place
};

// x[t, g, i] *= sigmoid(gates[t, g]).
void sigmoid_gate_cuda(const CudaOp& op, const SigmoidGateCudaArgs& args);

}  // namespace inferno::ops::cuda
