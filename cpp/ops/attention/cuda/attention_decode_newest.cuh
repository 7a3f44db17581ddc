// What decode attention does with q, k and v as the product left them: rope turns a token's queries
// and its key, by halves, and the key and the value become the cache's newest row.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/attention/cuda/attention_mma.cuh"
#include "ops/cuda/e4m3.cuh"
#include "ops/rope/turn.cuh"

namespace inferno::ops::cuda {

// Cosines and sines of two neighbouring elements.
struct TwoAngles {
  float2 cosine;
  float2 sine;
};

// Of dims `dim` and `dim` + 1 of the first half of a head.
template <int kHeadDim>
__device__ __forceinline__ TwoAngles two_angles(const float* cos_sin, std::uint32_t dim) {
  return {*reinterpret_cast<const float2*>(cos_sin + dim),
          *reinterpret_cast<const float2*>(cos_sin + kHeadDim / 2 + dim)};
}

// Two elements of the first half of a head with those of the second.
__device__ __forceinline__ void turn_two(float2& first, float2& second, const TwoAngles& angles) {
  turn(first.x, second.x, angles.cosine.x, angles.sine.x);
  turn(first.y, second.y, angles.cosine.y, angles.sine.y);
}

// The same of elements, which are rounded again.
template <typename Element>
__device__ __forceinline__ void turn_words(std::uint32_t& first, std::uint32_t& second,
                                           const TwoAngles& angles) {
  float2 of_first = unpack_pair<Element>(first);
  float2 of_second = unpack_pair<Element>(second);
  turn_two(of_first, of_second, angles);
  first = pack_pair<Element>(of_first.x, of_first.y);
  second = pack_pair<Element>(of_second.x, of_second.y);
}

// A token's key and value of a KV head, on their way to the cache, by a warp.
template <typename Element, typename Kv, int kHeadDim>
class NewestRow {
  static constexpr bool kFp8 = std::is_same_v<Kv, E4m3>;

 public:
  using Pair = std::conditional_t<kFp8, std::uint16_t, std::uint32_t>;  // of what the cache holds

  // k, v: [head_dim]. Only starts the loads.
  __device__ void load(const Element* k, const Element* v, const float* cos_sin) {
    for_each_pair([&](int i, std::uint32_t dim) {
      load_pair(k + dim, keys_[i]);
      load_pair(v + dim, values_[i]);
      angles_[i] = two_angles<kHeadDim>(cos_sin, dim);
    });
  }

  // Calls put(dim, key, value) for all neighbours dim and dim + 1.
  template <typename Put>
  __device__ void make(float k_scale, float v_scale, const Put& put) const {
    for_each_pair([&](int i, std::uint32_t dim) {
      float2 first = unpack_pair<Element>(keys_[i].x);
      float2 second = unpack_pair<Element>(keys_[i].y);
      turn_two(first, second, angles_[i]);
      put(dim, kept(first, k_scale), kept(unpack_pair<Element>(values_[i].x), v_scale));
      put(dim + kHeadDim / 2, kept(second, k_scale),
          kept(unpack_pair<Element>(values_[i].y), v_scale));
    });
  }

 private:
  static constexpr std::uint32_t kPairs = kHeadDim / 4;  // of half a head
  static constexpr std::uint32_t kCount = (kPairs + 31) / 32;

  template <typename Fn>
  __device__ static void for_each_pair(const Fn& fn) {
#pragma unroll
    for (std::uint32_t i = 0; i < kCount; ++i) {
      const std::uint32_t pair = i * 32 + threadIdx.x % 32;
      if (kPairs % 32 == 0 || pair < kPairs) fn(i, 2 * pair);
    }
  }

  __device__ static void load_pair(const Element* from, uint2& words) {
    words.x = *reinterpret_cast<const std::uint32_t*>(from);
    words.y = *reinterpret_cast<const std::uint32_t*>(from + kHeadDim / 2);
  }

  __device__ static Pair kept(float2 values, float scale) {
    if constexpr (kFp8) {
      return nearest_codes(values.x / scale, values.y / scale);
    } else {
      return pack_pair<Element>(values.x, values.y);
    }
  }

  uint2 keys_[kCount];  // two elements of the first half of the head, two of the second
  uint2 values_[kCount];
  TwoAngles angles_[kCount];
};

}  // namespace inferno::ops::cuda
