// A run of neighbouring elements with a gate each, as the kernels of every instruction set get it.
// Plain data, as in attention_task.h.
#pragma once

#include <cstddef>

namespace inferno::ops {

struct SigmoidGateRow {
  const float* gates;
  float* x;
  std::size_t size;
};

using SigmoidGateKernel = void (*)(const SigmoidGateRow& row);

void sigmoid_gate_avx2(const SigmoidGateRow& row);
void sigmoid_gate_avx512(const SigmoidGateRow& row);

}  // namespace inferno::ops
