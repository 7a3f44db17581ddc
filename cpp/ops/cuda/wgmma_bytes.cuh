// Products of bytes with signs by a warpgroup (wgmma). See wgmma.cuh.
#pragma once

#include "ops/cuda/wgmma.cuh"

namespace inferno::ops::cuda {

#ifdef INFERNO_SM90A

#define INFERNO_R4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define INFERNO_D4 INFERNO_R4(0)
#define INFERNO_D8 INFERNO_D4, INFERNO_R4(4)
#define INFERNO_D16 INFERNO_D8, INFERNO_R4(8), INFERNO_R4(12)
#define INFERNO_LIST4 "%0, %1, %2, %3"
#define INFERNO_LIST8 INFERNO_LIST4 ", %4, %5, %6, %7"
#define INFERNO_LIST16 INFERNO_LIST8 ", %8, %9, %10, %11, %12, %13, %14, %15"

// d [64, columns] = or += a [64, 32] · bᵀ, as wgmma_rows of elements: a warp has 16 rows of a, a
// lane of these two, and of each four bytes of the first 16 and of the last.
#define INFERNO_WGMMA_BYTES(columns, sums, a0, a1, a2, a3, j, k)                             \
  template <bool kFirst>                                                                     \
  __device__ __forceinline__ void wgmma_bytes(int(&d)[sums], const std::uint32_t(&a)[4],     \
                                              std::uint64_t b) {                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns                                \
                 "k32.s32.s8.s8"                                                             \
                 " {" INFERNO_LIST##sums "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #j \
                                         ", %" #k ";"                                        \
                 : INFERNO_D##sums                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kFirst ? 0 : 1)); \
  }
INFERNO_WGMMA_BYTES(8, 4, 4, 5, 6, 7, 8, 9)
INFERNO_WGMMA_BYTES(16, 8, 8, 9, 10, 11, 12, 13)
INFERNO_WGMMA_BYTES(32, 16, 16, 17, 18, 19, 20, 21)

#undef INFERNO_WGMMA_BYTES
#undef INFERNO_LIST16
#undef INFERNO_LIST8
#undef INFERNO_LIST4
#undef INFERNO_D16
#undef INFERNO_D8
#undef INFERNO_D4
#undef INFERNO_R4

#endif

}  // namespace inferno::ops::cuda
