// Products of codes of e4m3 by a warpgroup (wgmma). See wgmma.cuh.
#pragma once

#include "ops/cuda/wgmma.cuh"

namespace inferno::ops::cuda {

#ifdef INFERNO_SM90A

#define INFERNO_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define INFERNO_D8 INFERNO_F4(0), INFERNO_F4(4)
#define INFERNO_D16 INFERNO_D8, INFERNO_F4(8), INFERNO_F4(12)
#define INFERNO_D32 INFERNO_D16, INFERNO_F4(16), INFERNO_F4(20), INFERNO_F4(24), INFERNO_F4(28)
#define INFERNO_LIST8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define INFERNO_LIST16 INFERNO_LIST8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define INFERNO_LIST32                                                     \
  INFERNO_LIST16                                                           \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29" \
  ", %30, %31"

// d [64, columns] = or += a [64, 32] · bᵀ, as wgmma_rows of elements in shared memory.
#define INFERNO_WGMMA_CODES(columns, sums, i, j, k)                                                \
  template <bool kFirst>                                                                           \
  __device__ __forceinline__ void wgmma_codes(float(&d)[sums], std::uint64_t a, std::uint64_t b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns                                      \
                 "k32.f32.e4m3.e4m3 {" INFERNO_LIST##sums "}, %" #i ", %" #j ", %" #k ", 1, 1;"    \
                 : INFERNO_D##sums                                                                 \
                 : "l"(a), "l"(b), "n"(kFirst ? 0 : 1));                                           \
  }
INFERNO_WGMMA_CODES(16, 8, 8, 9, 10)
INFERNO_WGMMA_CODES(32, 16, 16, 17, 18)
INFERNO_WGMMA_CODES(64, 32, 32, 33, 34)

#undef INFERNO_WGMMA_CODES
#undef INFERNO_LIST32
#undef INFERNO_LIST16
#undef INFERNO_LIST8
#undef INFERNO_D32
#undef INFERNO_D16
#undef INFERNO_D8
#undef INFERNO_F4

#endif

}  // namespace inferno::ops::cuda
