// How rope turns two elements: the same bits in every kernel that does it.
#pragma once

#include "ops/cuda/cuda_device.cuh"

namespace inferno::ops::cuda {

// The operations are named one by one, so that no compiler fuses them otherwise elsewhere.
__device__ __forceinline__ void turn(float& first, float& second, float cosine, float sine) {
  const float turned = __fmaf_rn(first, cosine, -__fmul_rn(second, sine));
  second = __fmaf_rn(second, cosine, __fmul_rn(first, sine));
  first = turned;
}

}  // namespace inferno::ops::cuda
