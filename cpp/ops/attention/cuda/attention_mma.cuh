// What the attention kernels share: exponentials, packed pairs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/cuda_device.cuh"

namespace inferno::ops::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

// 2^x; the hardware's own, with subnormal results as 0. 2^-infinity is 0, 2^0 is 1.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two elements in a word, `low` in its lower half.
template <typename Element>
__device__ __forceinline__ std::uint32_t pack_pair(float low, float high) {
  std::uint32_t word;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

template <typename Element>
__device__ __forceinline__ float2 unpack_pair(std::uint32_t word) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000U)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
  }
}

// Four 8×8 matrices of elements, lane 8 i + r giving the address of row r of matrix i; word i of
// lane 4 g + t has elements 2 t and 2 t + 1 of row g, or, transposed, of column g.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(std::uint32_t (&words)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
  }
}

// Starts a copy of 16 bytes to shared memory; zeros, and nothing is read, where it is not valid.
__device__ __forceinline__ void copy_16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(target))),
               "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kPending groups of this thread's copies are on their way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace inferno::ops::cuda
