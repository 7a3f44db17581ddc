// A row of floats spread over one block, which keeps it in registers: loads, its norm, stores.
#pragma once

#include <type_traits>

#include "ops/cuda/pack.cuh"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {

// Thread t has packs t, t + blockDim.x, …
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

// Elements become floats.
template <int kPacks, typename Value>
__device__ __forceinline__ RowPart<kPacks> load_row(const Value* row, std::uint32_t hidden_size) {
  RowPart<kPacks> part;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    const auto pack = load_pack<Value, kRowPack>(row + column);
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) part.packs[i].at[j] = to_float(pack.at[j]);
  });
  return part;
}

template <int kPacks>
__device__ __forceinline__ RowPart<kPacks> row_of_ones() {
  RowPart<kPacks> part;
#pragma unroll
  for (auto& pack : part.packs) {
#pragma unroll
    for (float& value : pack.at) value = 1.0F;
  }
  return part;
}

// Ones where there is no weight.
template <int kPacks>
__device__ __forceinline__ RowPart<kPacks> load_weight(const float* weight,
                                                       std::uint32_t hidden_size) {
  return weight == nullptr ? row_of_ones<kPacks>() : load_row<kPacks>(weight, hidden_size);
}

// out = x, rounded to elements or as floats.
template <int kPacks, typename Value>
__device__ __forceinline__ void store_row(const RowPart<kPacks>& x, std::uint32_t hidden_size,
                                          Value* out) {
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    Pack<Value, kRowPack> pack;
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) pack.at[j] = from_float<Value>(x.packs[i].at[j]);
    store_pack(out + column, pack);
  });
}

// The sum over the block, in a fixed order. Each kNth once in a kernel.
template <int kNth>
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float sums[kMaxRowThreads / 32];
  value = warp_sum(value);
  const std::uint32_t lane = threadIdx.x % 32;
  if (lane == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? sums[lane] : 0.0F);
}

// rms_norm(x) of one row, by all threads of its block. The bits depend on the row and H only.
// Each kNth once in a kernel.
template <int kNth = 0, int kPacks>
__device__ __forceinline__ RowPart<kPacks> normalized(const RowPart<kPacks>& x,
                                                      const RowPart<kPacks>& weight, float eps,
                                                      std::uint32_t hidden_size) {
  float squares = 0.0F;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t) {
    for (const float value : x.packs[i].at) squares += value * value;
  });
  const float mean = block_sum<kNth>(squares) / static_cast<float>(hidden_size);
  const float scale = 1.0F / sqrtf(mean + eps);
  RowPart<kPacks> result;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t) {
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      result.packs[i].at[j] = x.packs[i].at[j] * scale * weight.packs[i].at[j];
    }
  });
  return result;
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

}  // namespace inferno::ops::cuda
