// What the kernels of elementwise_cuda.h share: neighbouring elements moved as one word, a row
// normalised by one block, the choice of a kernel by element type.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "ops/cuda/cuda_device.cuh"
#include "ops/cuda/elementwise_cuda.h"

namespace inferno::ops::cuda {

// Neighbouring elements, which memory gives and takes as one word.
template <typename Element, int kCount>
struct alignas(kCount * sizeof(Element)) Pack {
  Element at[kCount];
};

template <typename Element, int kCount>
__device__ __forceinline__ Pack<Element, kCount> load_pack(const Element* from) {
  return *reinterpret_cast<const Pack<Element, kCount>*>(from);
}

template <typename Element, int kCount>
__device__ __forceinline__ void store_pack(Element* to, const Pack<Element, kCount>& pack) {
  *reinterpret_cast<Pack<Element, kCount>*>(to) = pack;
}

// A row of H floats spread over a block: thread t has packs t, t + blockDim.x, …
inline constexpr int kRowPack = 4;
inline constexpr std::uint32_t kMaxRowThreads = 1024;
inline constexpr int kMaxRowPacks = 4;  // of a thread
static_assert(kMaxHiddenSize == kMaxRowThreads * kMaxRowPacks * kRowPack);

template <int kPacks>
struct RowPart {
  Pack<float, kRowPack> packs[kPacks];
};

// Calls fn(i, column) for each pack of this thread: the i-th, which begins at `column`.
template <int kPacks, typename Fn>
__device__ __forceinline__ void for_each_row_pack(std::uint32_t hidden_size, Fn fn) {
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const std::uint32_t column = (threadIdx.x + i * blockDim.x) * kRowPack;
    if (column < hidden_size) fn(i, column);
  }
}

template <int kPacks>
__device__ __forceinline__ RowPart<kPacks> load_row(const float* row, std::uint32_t hidden_size) {
  RowPart<kPacks> part;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    part.packs[i] = load_pack<float, kRowPack>(row + column);
  });
  return part;
}

// The sum over the block, in a fixed order. Once in a kernel.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float sums[kMaxRowThreads / 32];
  value = warp_sum(value);
  const std::uint32_t lane = threadIdx.x % 32;
  if (lane == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? sums[lane] : 0.0F);
}

// out = rms_norm(x) of one row. The bits depend on the row and H only.
template <int kPacks, typename Element>
__device__ __forceinline__ void normalize_row(const RowPart<kPacks>& x,
                                              const RowPart<kPacks>& weight, float eps,
                                              std::uint32_t hidden_size, Element* out) {
  float squares = 0.0F;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t) {
    for (const float value : x.packs[i].at) squares += value * value;
  });
  const float mean = block_sum(squares) / static_cast<float>(hidden_size);
  const float scale = 1.0F / sqrtf(mean + eps);
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    Pack<Element, kRowPack> pack;
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      pack.at[j] = from_float<Element>(x.packs[i].at[j] * scale * weight.packs[i].at[j]);
    }
    store_pack(out + column, pack);
  });
}

template <int kPacks>
using PacksOf = std::integral_constant<int, kPacks>;

// Threads of a row's block, and the packs of each as a PacksOf: launch_row(packs, threads). Few
// packs, so that the loads of a short row all fly at once.
template <typename LaunchRow>
void launch_by_hidden_size(std::uint32_t hidden_size, LaunchRow launch_row) {
  if (hidden_size % 8 != 0 || hidden_size == 0 || hidden_size > kMaxHiddenSize) {
    throw std::invalid_argument("other: hidden size " + std::to_string(hidden_size) +
                                ", expected a multiple of 8 up to " +
                                std::to_string(kMaxHiddenSize));
  }
  const auto threads = [&](std::uint32_t packs) {
    return (hidden_size / kRowPack + 32 * packs - 1) / (32 * packs) * 32;
  };
  if (threads(2) <= kMaxRowThreads) {
    launch_row(PacksOf<2>{}, threads(2));
  } else {
    launch_row(PacksOf<kMaxRowPacks>{}, threads(kMaxRowPacks));
  }
}

// Calls fn with a value of the element type.
template <typename Fn>
void with_element(Dtype dtype, Fn fn) {
  switch (dtype) {
    case Dtype::F16:
      return fn(__half{});
    case Dtype::BF16:
      return fn(__nv_bfloat16{});
    default:
      throw std::invalid_argument(std::string("other: elements of ") + dtype_name(dtype) +
                                  ", expected f16 or bf16");
  }
}

}  // namespace inferno::ops::cuda
