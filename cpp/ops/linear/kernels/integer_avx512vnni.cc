// As AVX-512 VNNI with VL encodes it: processors that have it without BF16, as Cascade Lake and Ice
// Lake.
#include "ops/linear/kernels/integer_tiles_vnni.h"

namespace inferno::ops {
namespace {

inline __attribute__((always_inline)) void add_products(__m256i& sum, __m256i codes, __m256i x) {
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
}

}  // namespace

const LinearKernels& integer_kernels_avx512vnni(WeightKind kind) noexcept {
  return kernels_of<kMaxRows>(kind);
}

}  // namespace inferno::ops
