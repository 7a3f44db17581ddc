// Inputs of a product become codes in the order that a quantized matrix's have (code_layout.h).
#pragma once

#include "ops/cuda/pack.cuh"
#include "ops/linear/cuda/code_layout.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kStepColumns = 16;

// The lowest bytes of four words, the first word's lowest.
__device__ __forceinline__ std::uint32_t lowest_bytes(const std::uint32_t (&words)[4]) {
  const std::uint32_t lower = __byte_perm(words[0], words[1], 0x0040);
  const std::uint32_t upper = __byte_perm(words[2], words[3], 0x0040);
  return __byte_perm(lower, upper, 0x5410);
}

// A step of a row, which one thread has.
template <typename Element>
struct InputStep {
  Pack<Element, 8> halves[2];

  // Zeros beyond the last column.
  __device__ __forceinline__ void load(const Element* row, std::uint32_t column,
                                       std::uint32_t num_columns) {
#pragma unroll
    for (std::uint32_t i = 0; i < 2; ++i) {
      halves[i] = {};
      if (column + 8 * i < num_columns) halves[i] = load_pack<Element, 8>(row + column + 8 * i);
    }
  }

  // The bits of the largest magnitude, as float. As whole numbers they have the order of the
  // magnitudes, above which is whatever is no number.
  __device__ __forceinline__ std::uint32_t largest() const {
    std::uint32_t both = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      std::uint32_t pair;
      memcpy(&pair, &halves[i / 4].at[i % 4 * 2], sizeof(pair));
      both = __vmaxu2(both, pair & 0x7fff7fffU);
    }
    const auto bits = static_cast<std::uint16_t>(max(both & 0xffffU, both >> 16));
    Element element;
    memcpy(&element, &bits, sizeof(bits));
    return __float_as_uint(to_float(element));
  }

  // The two inputs whose codes are neighbours there (word): number i of either half.
  __device__ __forceinline__ float2 pair(int i) const {
    return {to_float(halves[0].at[i]), to_float(halves[1].at[i])};
  }

  // The four codes that a lane of the matrix has of the same columns. code(value): in the lowest
  // byte.
  template <typename Code>
  __device__ __forceinline__ std::uint32_t word(int lane, const Code& code) const {
    const int at = 2 * lane;
    return lowest_bytes({code(to_float(halves[0].at[at])), code(to_float(halves[1].at[at])),
                         code(to_float(halves[0].at[at + 1])),
                         code(to_float(halves[1].at[at + 1]))});
  }
};

}  // namespace inferno::ops::cuda
