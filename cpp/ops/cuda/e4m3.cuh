// Codes of e4m3 and elements of 16 bits, each of which holds every number of e4m3 exactly.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "ops/cuda/cuda_device.cuh"

namespace inferno::ops::cuda {

using E4m3 = __nv_fp8_e4m3;

// The codes in the upper bytes of the halves of `word` as elements. Their exponents and mantissas
// are shifted to where an element has them; a multiplication makes up for the other bias, for
// subnormal numbers, too. A NaN becomes 480.
template <typename Element>
__device__ __forceinline__ std::uint32_t upper_codes(std::uint32_t word) {
  constexpr bool kHalf = std::is_same_v<Element, __half>;
  constexpr int kShift = kHalf ? 1 : 4;
  constexpr std::uint32_t kMask = kHalf ? 0x3f803f80U : 0x07f007f0U;
  constexpr std::uint32_t kFactor = kHalf ? 0x5c005c00U : 0x7b807b80U;  // 2^8, 2^120
  using Pair = std::conditional_t<kHalf, __half2, __nv_bfloat162>;
  const auto as_pair = [](std::uint32_t bits) {
    Pair pair;
    memcpy(&pair, &bits, sizeof(bits));
    return pair;
  };
  std::uint32_t bits;
  // (word & sign) | rest in one instruction.
  asm("lop3.b32 %0, %1, %2, %3, 0xea;"
      : "=r"(bits)
      : "r"(word), "r"(0x80008000U), "r"(word >> kShift & kMask));
  const Pair product = __hmul2(as_pair(bits), as_pair(kFactor));
  memcpy(&bits, &product, sizeof(bits));
  return bits;
}

// Those in the lower bytes.
template <typename Element>
__device__ __forceinline__ std::uint32_t lower_codes(std::uint32_t word) {
  return upper_codes<Element>(word << 8);
}

// Four neighbours as elements in their order.
template <typename Element>
__device__ __forceinline__ uint2 widened(std::uint32_t codes) {
  const std::uint32_t even = lower_codes<Element>(codes);
  const std::uint32_t odd = upper_codes<Element>(codes);
  return make_uint2(__byte_perm(even, odd, 0x5410), __byte_perm(even, odd, 0x7632));
}

// The nearest codes of two numbers, `low` in the lower byte; beyond 448 is 448.
__device__ __forceinline__ std::uint16_t nearest_codes(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

}  // namespace inferno::ops::cuda
