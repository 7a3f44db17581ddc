#include "ops/base/simd_avx512.h"
// The lanes come first.
#include "ops/silu_mul/silu_mul_simd.h"

namespace inferno::ops {

void silu_mul_avx512(const float* gate, const float* up, float* out, std::size_t size) {
  silu_mul_simd<Lanes>(gate, up, out, size);
}

}  // namespace inferno::ops
