// Products of a warpgroup (wgmma), which only machine code for sm_90a has, and what orders them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define INFERNO_SM90A 1
#endif

namespace inferno::ops::cuda {

#ifdef INFERNO_SM90A

// Ordinary writes to shared memory before it are seen by wgmma and the copy engine after it.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Barriers among some of a block's warps, by number; 0 is __syncthreads.
template <int kThreads>
__device__ __forceinline__ void named_sync(std::uint32_t number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

// Arrives there without waiting.
template <int kThreads>
__device__ __forceinline__ void named_arrive(std::uint32_t number) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

// A warpgroup gives back registers, or takes them: so many each thread then has.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A matrix in shared memory in rows of 128 bytes, whose 16-byte chunks lie at chunk ^ (row % 8);
// 64 elements of a row are together, the next 64 `plane_bytes` further. Its parts are aligned to
// 1,024 bytes. (PTX ISA, "Matrix descriptor"; plane_bytes counts where rows are summed over.)
__device__ __forceinline__ std::uint64_t matrix_descriptor(std::uint32_t address,
                                                           std::uint32_t plane_bytes) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | (std::uint64_t{plane_bytes >> 4} << 16) |
         ((address & 0x3ffffU) >> 4);
}
__device__ __forceinline__ std::uint64_t matrix_descriptor(const void* matrix,
                                                           std::uint32_t plane_bytes) {
  return matrix_descriptor(shared_address(matrix), plane_bytes);
}

// Bytes further in the matrix.
__device__ __forceinline__ std::uint64_t advanced(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the sums across a fence or wait.
template <int kCount>
__device__ __forceinline__ void hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void hold(int (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define INFERNO_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define INFERNO_F8(i) INFERNO_F4(i), INFERNO_F4(i + 4)
#define INFERNO_D4 INFERNO_F4(0)
#define INFERNO_D8 INFERNO_F8(0)
#define INFERNO_D12 INFERNO_F8(0), INFERNO_F4(8)
#define INFERNO_D16 INFERNO_F8(0), INFERNO_F8(8)
#define INFERNO_D24 INFERNO_D16, INFERNO_F8(16)
#define INFERNO_D32 INFERNO_D24, INFERNO_F8(24)
#define INFERNO_D40 INFERNO_D32, INFERNO_F8(32)
#define INFERNO_D48 INFERNO_D40, INFERNO_F8(40)
#define INFERNO_D64 INFERNO_D48, INFERNO_F8(48), INFERNO_F8(56)
#define INFERNO_D96 INFERNO_D64, INFERNO_F8(64), INFERNO_F8(72), INFERNO_F8(80), INFERNO_F8(88)
#define INFERNO_D128 INFERNO_D96, INFERNO_F8(96), INFERNO_F8(104), INFERNO_F8(112), INFERNO_F8(120)
#define INFERNO_LIST4 "%0, %1, %2, %3"
#define INFERNO_LIST8 INFERNO_LIST4 ", %4, %5, %6, %7"
#define INFERNO_LIST12 INFERNO_LIST8 ", %8, %9, %10, %11"
#define INFERNO_LIST16 INFERNO_LIST12 ", %12, %13, %14, %15"
#define INFERNO_LIST24 INFERNO_LIST16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define INFERNO_LIST32 INFERNO_LIST24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define INFERNO_LIST40 INFERNO_LIST32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define INFERNO_LIST48 INFERNO_LIST40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define INFERNO_LIST64                         \
  INFERNO_LIST48                               \
  ", %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define INFERNO_LIST128                                                                   \
  INFERNO_LIST64                                                                          \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "    \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
  "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "  \
  "%125, %126, %127"

// d [64, columns] = or += a · bᵀ: both factors in shared memory with the summed dimension along the
// rows. kFirst: d = instead of d +=. A thread has two floats in each of two rows for 8 columns.
#define INFERNO_WGMMA_SS(columns, types, sums, i, j, k)                            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." types       \
               " {" INFERNO_LIST##sums "}, %" #i ", %" #j ", %" #k ", 1, 1, 0, 0;" \
               : INFERNO_D##sums                                                   \
               : "l"(a), "l"(b), "n"(kFirst ? 0 : 1))
#define INFERNO_WGMMA_ROWS(columns, sums, i, j, k)                                                \
  template <typename Element, bool kFirst>                                                        \
  __device__ __forceinline__ void wgmma_rows(float(&d)[sums], std::uint64_t a, std::uint64_t b) { \
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {                                       \
      INFERNO_WGMMA_SS(columns, "bf16.bf16", sums, i, j, k);                                      \
    } else {                                                                                      \
      INFERNO_WGMMA_SS(columns, "f16.f16", sums, i, j, k);                                        \
    }                                                                                             \
  }
INFERNO_WGMMA_ROWS(8, 4, 4, 5, 6)
INFERNO_WGMMA_ROWS(16, 8, 8, 9, 10)
INFERNO_WGMMA_ROWS(24, 12, 12, 13, 14)
INFERNO_WGMMA_ROWS(32, 16, 16, 17, 18)
INFERNO_WGMMA_ROWS(48, 24, 24, 25, 26)
INFERNO_WGMMA_ROWS(64, 32, 32, 33, 34)
INFERNO_WGMMA_ROWS(80, 40, 40, 41, 42)
INFERNO_WGMMA_ROWS(128, 64, 64, 65, 66)
INFERNO_WGMMA_ROWS(256, 128, 128, 129, 130)

#define INFERNO_WGMMA_RS128(types)                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." types " {" INFERNO_LIST128 \
               "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"                          \
               : INFERNO_D128                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define INFERNO_WGMMA_RS64(types)                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {" INFERNO_LIST64 \
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                              \
               : INFERNO_D64                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define INFERNO_WGMMA_RS48(types)                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32." types " {" INFERNO_LIST48 \
               "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"                             \
               : INFERNO_D48                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define INFERNO_WGMMA_RS32(types)                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." types " {" INFERNO_LIST32 \
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                             \
               : INFERNO_D32                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// The first factor in registers; the rows of the second are summed over.
template <typename Element, int kCount>
__device__ __forceinline__ void wgmma_columns(float (&d)[kCount], const std::uint32_t (&a)[4],
                                              std::uint64_t b) {
  constexpr bool kBf16 = std::is_same_v<Element, __nv_bfloat16>;
  if constexpr (kCount == 128 && kBf16) {
    INFERNO_WGMMA_RS128("bf16.bf16");
  } else if constexpr (kCount == 128) {
    INFERNO_WGMMA_RS128("f16.f16");
  } else if constexpr (kCount == 64 && kBf16) {
    INFERNO_WGMMA_RS64("bf16.bf16");
  } else if constexpr (kCount == 64) {
    INFERNO_WGMMA_RS64("f16.f16");
  } else if constexpr (kCount == 48 && kBf16) {
    INFERNO_WGMMA_RS48("bf16.bf16");
  } else if constexpr (kCount == 48) {
    INFERNO_WGMMA_RS48("f16.f16");
  } else if constexpr (kBf16) {
    INFERNO_WGMMA_RS32("bf16.bf16");
  } else {
    INFERNO_WGMMA_RS32("f16.f16");
  }
}

// As wgmma_rows of two matrices in shared memory, the first factor in registers: 16 rows to a warp,
// as mma_16816 has them.
#define INFERNO_WGMMA_RS(columns, types, sums, a0, a1, a2, a3, j, k)                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." types               \
               " {" INFERNO_LIST##sums "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #j \
                                       ", %" #k ", 1, 1, 0;"                               \
               : INFERNO_D##sums                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kFirst ? 0 : 1))
#define INFERNO_WGMMA_REGISTER_ROWS(columns, sums, a0, a1, a2, a3, j, k)                  \
  template <typename Element, bool kFirst>                                                \
  __device__ __forceinline__ void wgmma_rows(float(&d)[sums], const std::uint32_t(&a)[4], \
                                             std::uint64_t b) {                           \
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {                               \
      INFERNO_WGMMA_RS(columns, "bf16.bf16", sums, a0, a1, a2, a3, j, k);                 \
    } else {                                                                              \
      INFERNO_WGMMA_RS(columns, "f16.f16", sums, a0, a1, a2, a3, j, k);                   \
    }                                                                                     \
  }
INFERNO_WGMMA_REGISTER_ROWS(8, 4, 4, 5, 6, 7, 8, 9)
INFERNO_WGMMA_REGISTER_ROWS(16, 8, 8, 9, 10, 11, 12, 13)
INFERNO_WGMMA_REGISTER_ROWS(32, 16, 16, 17, 18, 19, 20, 21)
INFERNO_WGMMA_REGISTER_ROWS(48, 24, 24, 25, 26, 27, 28, 29)
INFERNO_WGMMA_REGISTER_ROWS(64, 32, 32, 33, 34, 35, 36, 37)
INFERNO_WGMMA_REGISTER_ROWS(128, 64, 64, 65, 66, 67, 68, 69)

#undef INFERNO_WGMMA_RS32
#undef INFERNO_WGMMA_RS48
#undef INFERNO_WGMMA_RS64
#undef INFERNO_WGMMA_RS128
#undef INFERNO_WGMMA_REGISTER_ROWS
#undef INFERNO_WGMMA_RS
#undef INFERNO_WGMMA_ROWS
#undef INFERNO_WGMMA_SS
#undef INFERNO_LIST128
#undef INFERNO_LIST64
#undef INFERNO_LIST48
#undef INFERNO_LIST40
#undef INFERNO_LIST32
#undef INFERNO_LIST24
#undef INFERNO_LIST16
#undef INFERNO_LIST12
#undef INFERNO_LIST8
#undef INFERNO_LIST4
#undef INFERNO_D128
#undef INFERNO_D96
#undef INFERNO_D64
#undef INFERNO_D48
#undef INFERNO_D40
#undef INFERNO_D32
#undef INFERNO_D24
#undef INFERNO_D16
#undef INFERNO_D12
#undef INFERNO_D8
#undef INFERNO_D4
#undef INFERNO_F8
#undef INFERNO_F4

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda
