// Instructions of compute capability 9.0, one function each. PTX ISA: "mbarrier",
// "cp.async.bulk.tensor", "ldmatrix".
#pragma once

#include <cuda.h>

#include "ops/cuda_device.cuh"

#ifdef INFERNO_SM90
namespace inferno::ops::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(std::uint64_t* barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives, and lets the phase end only when `bytes` have been copied besides.
__device__ __forceinline__ void arrive_expecting(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void wait_barrier(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// A place in a ring and the parity of the barriers' phase there.
template <std::uint32_t kStages>
struct RingPosition {
  std::uint32_t stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Data read once should not drive out of L2 what is read again.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ std::uint64_t evict_last_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies the map's box whose first element is (row, column) to shared memory.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map,
                                         std::uint32_t column, std::uint32_t row,
                                         std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The same with no hint for L2.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map,
                                         std::uint32_t column, std::uint32_t row,
                                         std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// The same of a map of boxes side by side (boxes_map): from box number `box` of its rows on.
__device__ __forceinline__ void copy_boxes(std::uint32_t to, const CUtensorMap* map,
                                           std::uint32_t row, std::uint32_t box,
                                           std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(row), "r"(box), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// Four 8 x 8 matrices of 16-bit elements, the rows of matrix i at the addresses of lanes 8 i to
// 8 i + 7.
struct Fragments {
  std::uint32_t at[4];
};

__device__ __forceinline__ Fragments load_matrices(std::uint32_t address) {
  Fragments f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(address)
               : "memory");
  return f;
}

// Floats handed to another block in memory that is zero before: each is its own flag, so there is
// no fence and no second trip. A sum of +0 goes as -0.
__device__ __forceinline__ void publish(float4* to, const float (&values)[4]) {
  float out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(values[i]) == 0 ? -0.0F : values[i];
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(out[0]),
               "f"(out[1]), "f"(out[2]), "f"(out[3])
               : "memory");
}

__device__ __forceinline__ float4 read_published(const float4* from) {
  float4 values;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values.x), "=f"(values.y), "=f"(values.z), "=f"(values.w)
               : "l"(from)
               : "memory");
  return values;
}

__device__ __forceinline__ bool is_published(const float4& values) {
  return __float_as_uint(values.x) != 0 && __float_as_uint(values.y) != 0 &&
         __float_as_uint(values.z) != 0 && __float_as_uint(values.w) != 0;
}

}  // namespace inferno::ops::cuda
#endif
