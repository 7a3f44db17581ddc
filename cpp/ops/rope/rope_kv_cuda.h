// What comes between the product of q, k and v and attention, in one launch on the GPU: norm of the
// heads, rope, the query's own scale, the KV write. Contracts as in rms_norm.h, rope.h and
// kv_write.h for elements of 16 bits: computed in float, rounded once, to the elements or to what
// the cache holds. A token's bits depend on its
// own inputs only.
#pragma once

#include <cstdint>

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/cuda/cuda_op.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kNoSlot = 0xFFFFFFFF;  // padding of a graph: nothing is written

// The layer's head_dim is a multiple of 16 up to 512; otherwise "other: …".
struct RopeKvArgs {
  void* qkv = nullptr;             // [T, num_heads + 2 num_kv_heads, head_dim]: q changes in place
  const float* cos_sin = nullptr;  // [T, 2, rotary_dim / 2], or null: no rope
  const std::uint32_t* slot_mapping = nullptr;  // [T] slots, all different, or kNoSlot
  std::uint32_t num_tokens = 0;                 // T
  std::uint32_t num_heads = 0;
  // The elements of a head that rope turns, its first ones; a multiple of 16 up to head_dim. Pairs
  // (i, i + rotary_dim / 2); interleaved: (2 i, 2 i + 1).
  std::uint32_t rotary_dim = 0;
  bool interleaved = false;
  RowNorm q_norm{};  // of each head of q, before rope; weight [head_dim]
  RowNorm k_norm{};
  // q *= 1 + query_beta * ln(1 + floor(position / query_original_positions)); beta 0: as it is.
  float query_beta = 0;
  float query_original_positions = 0;
  const std::uint32_t* positions = nullptr;  // [T]; read with a beta only
};

// q changed in place; k, changed, and v written to the cache. A slot that the layer has not writes
// nothing.
void rope_kv_cuda(const CudaOp& op, const KvLayerCuda& layer, const RopeKvArgs& args);

}  // namespace inferno::ops::cuda
