// What the kernels share: dependent launch, element types, products and sums by a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define INFERNO_SM90 1
#endif

// Waits until the kernels before this one have ended and their writes are seen.
__device__ __forceinline__ void wait_for_previous() {
#ifdef INFERNO_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start where there is room.
__device__ __forceinline__ void let_next_start() {
#ifdef INFERNO_SM90
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <typename Element>
__device__ __forceinline__ float to_float(Element value);
template <>
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <>
__device__ __forceinline__ float to_float(__half value) {
  return __half2float(value);
}
template <>
__device__ __forceinline__ float to_float(float value) {
  return value;
}

template <typename Element>
__device__ __forceinline__ Element from_float(float value);
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ float from_float(float value) {
  return value;
}

// d [16, 8] += a [16, 16] · b [16, 8] by a warp (PTX ISA, "Matrix fragments for mma.m16n8k16"). A
// thread has of d rows lane / 4 and + 8, columns 2 (lane % 4) and + 1: [row, column],
// [row, column + 1], [row + 8, column], [row + 8, column + 1].
template <typename Element>
__device__ __forceinline__ void mma_16816(float (&d)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
#define INFERNO_MMA(types)                                                   \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." types                         \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    INFERNO_MMA("bf16.bf16");
  } else {
    INFERNO_MMA("f16.f16");
  }
#undef INFERNO_MMA
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffU, value, lane);
  return value;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::uint32_t shared_bytes = 0;
  std::uint32_t cluster = 1;  // blocks that run together
};

// Launches with programmatic stream serialisation, and in clusters, where the device has them
// (sm_90 and later). The arguments must have the kernel's own parameter types.
template <typename... Params, typename... Args>
void launch(const CudaOp& op, void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = op.stream;
  config.attrs = attributes;
  config.numAttrs = !op.dependent_launch ? 0 : shape.cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "cudaLaunchKernelEx");
}

}  // namespace inferno::ops::cuda
