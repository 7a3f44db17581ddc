// Codes of quantized weights become elements in registers, two at a time, exactly.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <type_traits>

#include "ops/linear/cuda/code_layout.h"
#include "ops/linear/weight_format.h"

namespace inferno::ops::cuda {

// Two neighbouring elements.
template <typename Element>
using Pair = std::conditional_t<std::is_same_v<Element, __half>, __half2, __nv_bfloat162>;

template <typename Element>
__device__ __forceinline__ Pair<Element> as_pair(std::uint32_t bits) {
  Pair<Element> pair;
  memcpy(&pair, &bits, sizeof(bits));
  return pair;
}

template <typename Element>
__device__ __forceinline__ std::uint32_t bits_of(const Pair<Element>& pair) {
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Where the bits of codes belong in elements.
template <typename Element>
struct CodeBits {
  static constexpr bool kHalf = std::is_same_v<Element, __half>;
  // Whole numbers below 2^10 (2^7) stand in the last bits of a number that begins at 2^10 (2^7).
  static constexpr std::uint32_t kWhole = kHalf ? 0x64006400U : 0x43004300U;
  static constexpr std::uint32_t kWholePlus8 = kHalf ? 0x64086408U : 0x43084308U;
  // Exponent and mantissa of e4m3 in the upper bytes, shifted down; then a factor that makes up for
  // the other bias, for subnormal numbers, too: 2^8 (2^120).
  static constexpr int kE4m3Shift = kHalf ? 1 : 4;
  static constexpr std::uint32_t kE4m3Mask = kHalf ? 0x3f803f80U : 0x07f007f0U;
  static constexpr std::uint32_t kE4m3Factor = kHalf ? 0x5c005c00U : 0x7b807b80U;
  // The same of e2m1 in the lower bits, shifted up: 2^14 (2^126).
  static constexpr int kE2m1Shift = kHalf ? 9 : 6;
  static constexpr std::uint32_t kE2m1Mask = kHalf ? 0x0e000e00U : 0x01c001c0U;
  static constexpr std::uint32_t kE2m1Factor = kHalf ? 0x74007400U : 0x7e807e80U;
};

// (a & mask) | b, and (a & mask) ^ b, in one instruction, which the compiler makes two of where
// mask and b are constants.
__device__ __forceinline__ std::uint32_t masked_or(std::uint32_t a, std::uint32_t mask,
                                                   std::uint32_t b) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(b));
  return result;
}
__device__ __forceinline__ std::uint32_t masked_xor(std::uint32_t a, std::uint32_t mask,
                                                    std::uint32_t b) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(a), "r"(mask), "r"(b));
  return result;
}

// value(code) - zero_point of the two codes in the lower bytes (of 4 bits: the lowest) of the
// halves of `word`; of fp8 in the upper bytes.
template <WeightKind kKind, typename Element>
__device__ __forceinline__ std::uint32_t pair_of(std::uint32_t word) {
  using Bits = CodeBits<Element>;
  const auto difference = [](std::uint32_t a, std::uint32_t b) {
    return bits_of<Element>(__hsub2(as_pair<Element>(a), as_pair<Element>(b)));
  };
  const auto product = [](std::uint32_t a, std::uint32_t b) {
    return bits_of<Element>(__hmul2(as_pair<Element>(a), as_pair<Element>(b)));
  };
  if constexpr (kKind == WeightKind::Fp8) {
    return product(masked_or(word, 0x80008000U, word >> Bits::kE4m3Shift & Bits::kE4m3Mask),
                   Bits::kE4m3Factor);
  } else if constexpr (kKind == WeightKind::Int8) {
    // The lower seven bits less 128 times the upper one.
    return difference(masked_or(word, 0x007f007fU, Bits::kWhole),
                      masked_or(word, 0x00800080U, Bits::kWhole));
  } else if constexpr (kKind == WeightKind::Int4) {
    return difference(masked_xor(word, 0x000f000fU, Bits::kWholePlus8), Bits::kWholePlus8);
  } else {
    return product(masked_or(word << 12, 0x80008000U, word << Bits::kE2m1Shift & Bits::kE2m1Mask),
                   Bits::kE2m1Factor);
  }
}

// A lane's codes of a row of a span.
template <WeightKind kKind>
struct LaneSpan {
  static constexpr bool kBytes = kKind == WeightKind::Fp8 || kKind == WeightKind::Int8;
  static constexpr int kWords = kBytes ? 8 : 4;
  static constexpr std::uint32_t kSecondHalf = kSpanColumns / 2;
  std::uint32_t words[kWords];

  // Where a lane's codes begin, behind the strip's.
  __device__ __forceinline__ static std::uint32_t place(std::uint32_t lane) {
    const std::uint32_t row = lane / 4;
    return kBytes ? row * kSpanColumns + ((lane % 4 ^ row) << 4) : row * 64 + lane % 4 * 16;
  }

  // `strip`: where the strip's span begins.
  __device__ __forceinline__ void load(const std::byte* strip, std::uint32_t lane) {
    load_chunks(strip + place(lane), strip + (place(lane) ^ kSecondHalf));
  }

  // Of 8 bits; `row`: where a row's part of the span begins, which has no swizzle.
  __device__ __forceinline__ void load_row(const std::byte* row, std::uint32_t lane_of_row) {
    load_chunks(row + lane_of_row * 16, row + lane_of_row * 16 + kSecondHalf);
  }

  // second: of 8 bits.
  __device__ __forceinline__ void load_chunks(const std::byte* first, const std::byte* second) {
    take(0, *reinterpret_cast<const uint4*>(first));
    if constexpr (kBytes) take(4, *reinterpret_cast<const uint4*>(second));
  }

  // The two pairs of a step, as elements. All indices are constants after unrolling.
  template <typename Element>
  __device__ __forceinline__ void pairs(int step, std::uint32_t& first,
                                        std::uint32_t& second) const {
    if constexpr (kKind == WeightKind::Fp8) {
      first = pair_of<kKind, Element>(words[step] << 8);
      second = pair_of<kKind, Element>(words[step]);
    } else if constexpr (kKind == WeightKind::Int8) {
      first = pair_of<kKind, Element>(words[step]);
      second = pair_of<kKind, Element>(words[step] >> 8);
    } else {
      const std::uint32_t word = words[step / 2] >> (step % 2 * 4);
      first = pair_of<kKind, Element>(word);
      second = pair_of<kKind, Element>(word >> 8);
    }
  }

  // The codes of two steps as bytes with signs, as wgmma_bytes wants them; of 4 bits, sixteen
  // times their value.
  __device__ __forceinline__ void bytes(int step, std::uint32_t& first,
                                        std::uint32_t& second) const {
    if constexpr (kKind == WeightKind::Int8) {
      first = words[step];
      second = words[step + 1];
    } else {
      first = words[step / 2] << 4 & 0xf0f0f0f0U;
      second = words[step / 2] & 0xf0f0f0f0U;
    }
  }

 private:
  __device__ __forceinline__ void take(int first, const uint4& four) {
    words[first] = four.x;
    words[first + 1] = four.y;
    words[first + 2] = four.z;
    words[first + 3] = four.w;
  }
};

// A scale word; of a format with offsets also the shift of codes, for both of a pair.
__device__ __forceinline__ float scale_of(std::uint32_t word, bool offsets) {
  if (!offsets) return __uint_as_float(word);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}
template <typename Element>
__device__ __forceinline__ Pair<Element> shift_of(std::uint32_t word) {
  const std::uint32_t both = __byte_perm(word, 0, 0x1010);
  if constexpr (std::is_same_v<Element, __half>) {
    return __float2half2_rn(__uint_as_float(word << 16));
  } else {
    return as_pair<Element>(both);
  }
}

template <typename Element>
__device__ __forceinline__ std::uint32_t shifted(std::uint32_t pair, const Pair<Element>& shift) {
  return bits_of<Element>(__hsub2(as_pair<Element>(pair), shift));
}

// Lane l of four neighbours gives words[i] to lane i and gets in words[i] what lane i had for it.
__device__ __forceinline__ void transpose(std::uint32_t (&words)[4]) {
  const std::uint32_t lane = threadIdx.x % 4;
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const bool upper = (lane & bit) != 0;
      const std::uint32_t sent = upper ? words[i] : words[i | bit];
      const std::uint32_t got = __shfl_xor_sync(~0U, sent, bit);
      (upper ? words[i] : words[i | bit]) = got;
    }
  }
}

}  // namespace inferno::ops::cuda
