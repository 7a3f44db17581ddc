// As AVX-VNNI encodes it: Intel's client processors since 2021, its servers since 2023, Zen 5.
#include "ops/linear/kernels/integer_tiles_vnni.h"

namespace inferno::ops {
namespace {

inline __attribute__((always_inline)) void add_products(__m256i& sum, __m256i codes, __m256i x) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
}

}  // namespace

const LinearKernels& integer_kernels_avxvnni(WeightKind kind) noexcept {
  return kernels_of<kMaxRows>(kind);
}

}  // namespace inferno::ops
