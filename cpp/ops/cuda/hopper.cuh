// Instructions of compute capability 9.0, one function each. PTX ISA: "mbarrier", "cp.async",
// "cp.async.bulk.tensor", "ldmatrix", "barrier.cluster", "mapa", "st.async".
#pragma once

#include <cuda.h>

#include "ops/cuda/cuda_device.cuh"

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
  // By up to kStages.
  __device__ void advance(std::uint32_t by = 1) {
    stage += by;
    if (stage < kStages) return;
    stage -= kStages;
    parity ^= 1;
  }
};

// A value that is the same in all lanes, which the compiler then knows: loops over it do not
// diverge, which products by warpgroups need, and matrix descriptors need no vector arithmetic.
__device__ __forceinline__ std::uint32_t uniform(std::uint32_t value) {
  return __shfl_sync(~0U, value, 0);
}

// The same, for the compiler something new, which it keeps instead of computing it again.
template <typename T>
__device__ __forceinline__ T opaque(T value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A pointer to an address in shared memory.
template <typename T>
__device__ __forceinline__ T* shared_pointer(std::uint32_t address) {
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

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

// The first copy through the map finds it at hand.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Where a box begins, by the two dimensions of its map that are walked.
struct BoxAt {
  std::uint32_t inner;
  std::uint32_t outer;
};

// Copies the map's box whose first element is (column, row) to shared memory.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, BoxAt at,
                                         std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(at.inner), "r"(at.outer), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The same with no hint for L2.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, BoxAt at,
                                         std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(at.inner), "r"(at.outer), "r"(shared_address(barrier))
      : "memory");
}

// The same of a map of boxes side by side (boxes_map): at (row, box), from that box of its rows on.
__device__ __forceinline__ void copy_boxes(std::uint32_t to, const CUtensorMap* map, BoxAt at,
                                           std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(at.inner), "r"(at.outer), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The same of a map of matrices (stack_map).
__device__ __forceinline__ void copy_stack_boxes(std::uint32_t to, const CUtensorMap* map,
                                                 const uint3& row_box_matrix,
                                                 std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(map), "r"(0), "r"(row_box_matrix.x), "r"(row_box_matrix.y), "r"(row_box_matrix.z),
      "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The same with no hint for L2.
__device__ __forceinline__ void copy_stack_boxes(std::uint32_t to, const CUtensorMap* map,
                                                 const uint3& row_box_matrix,
                                                 std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(map), "r"(0), "r"(row_box_matrix.x), "r"(row_box_matrix.y), "r"(row_box_matrix.z),
      "r"(shared_address(barrier))
      : "memory");
}

// Copies `bytes` of neighbouring memory; everything a multiple of 16.
__device__ __forceinline__ void copy_bytes(std::uint32_t to, const void* from, std::uint32_t bytes,
                                           std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Starts a copy of 16 bytes by this thread alone. It is an ordinary write: before wgmma reads what
// came, fence_async_proxy.
__device__ __forceinline__ void copy_16(std::uint32_t to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Arrives when all such copies that this thread has started are there.
__device__ __forceinline__ void arrive_when_copied(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// As copy_box, of a map of paired rows (paired_map): at (column, run), from that run of each half
// on.
__device__ __forceinline__ void copy_paired_box(std::uint32_t to, const CUtensorMap* map, BoxAt at,
                                                std::uint64_t* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(at.inner), "r"(0), "r"(at.outer), "r"(shared_address(barrier)), "l"(policy)
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

// A block's place among those of its cluster.
__device__ __forceinline__ std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Every thread of a cluster arrives once; one that waits then sees what all did before they
// arrived.
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The address of the same shared memory in another block of the cluster.
__device__ __forceinline__ std::uint32_t address_in(std::uint32_t rank, std::uint32_t address) {
  std::uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// Writes 16 bytes into a block's shared memory and counts them at a barrier there.
__device__ __forceinline__ void send(std::uint32_t to, const float4& values,
                                     std::uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
      "{%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
      : "memory");
}

}  // namespace inferno::ops::cuda
#endif
