// Which of a kernel's instances a layer takes.
#pragma once

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/cuda/pack.cuh"

namespace inferno::ops::cuda {

template <int kHeadDim>
using HeadDim = std::integral_constant<int, kHeadDim>;

// Calls fn(element, head_dim) with a value of the type of queries and output, and the head's size
// as a HeadDim: of those that check_attention_cuda lets through, from kLeast on.
template <int kLeast = 32, typename Fn>
void with_attention_kind(const KvLayerCuda& layer, Fn fn) {
  with_element(layer.dtype, [&](auto element) {
    switch (layer.head_dim) {
      case 32:
        if constexpr (kLeast <= 32) fn(element, HeadDim<32>{});
        return;
      case 64:
        return fn(element, HeadDim<64>{});
      case 96:
        return fn(element, HeadDim<96>{});
      case 128:
        return fn(element, HeadDim<128>{});
      default:
        return fn(element, HeadDim<256>{});
    }
  });
}

}  // namespace inferno::ops::cuda
