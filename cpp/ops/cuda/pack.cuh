// What the elementwise kernels share: neighbouring elements moved as one word, the choice of a
// kernel by element type.
#pragma once

#include <stdexcept>
#include <string>

#include "ops/cuda/cuda_device.cuh"

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
