#include "ops/base/simd/simd_avx512.h"
// The lanes come first.
#include "ops/sigmoid_gate/sigmoid_gate_simd.h"

namespace inferno::ops {

void sigmoid_gate_avx512(const SigmoidGateRow& row) { sigmoid_gate_simd<Lanes>(row); }

}  // namespace inferno::ops
