// The ops around products and attention on the GPU: embedding, norm, rope with the KV write, the
// gated activation. Contracts as in embed.h, rms_norm.h, rope.h, kv_write.h and silu_mul.h, for
// elements of 16 bits: computed in float, rounded once. A token's bits depend on its own inputs
// only. H is a multiple of 8 up to kMaxHiddenSize, head_dim of 16, I of 8; otherwise "other: …".
#pragma once

#include <cstdint>

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kMaxHiddenSize = 16384;
inline constexpr std::uint32_t kNoSlot = 0xFFFFFFFF;  // padding of a graph: nothing is written
inline constexpr std::uint32_t kNoSeat = 0xFFFFFFFF;  // token_ids holds the token

struct EmbedCudaArgs {
  DeviceMatrix table;                          // [vocab_size, H]
  const std::uint32_t* token_ids = nullptr;    // [T]
  const std::uint32_t* feed_seats = nullptr;   // [T] kNoSeat, or the seat whose token is fed
  const std::uint32_t* sampled_ids = nullptr;  // [max_batch_size] the last token of each seat
  std::uint32_t num_tokens = 0;                // T
  const std::uint32_t* positions = nullptr;    // [T]
  const float* inv_freq = nullptr;             // [head_dim / 2]
  std::uint32_t head_dim = 0;
  const float* norm_weight = nullptr;  // [H] of the first layer
  float eps = 0;
  float* x = nullptr;        // [T, H] the rows of the table
  void* h = nullptr;         // [T, H] elements: rms_norm(x)
  float* cos_sin = nullptr;  // [T, 2, head_dim / 2] as rope_angles makes them
};

// The start of a step in one launch: embedding, the first norm, the angles. A fed or given id that
// is not below vocab_size counts as 0 (the host has checked the given ones).
void embed_cuda(const CudaOp& op, const EmbedCudaArgs& args);

struct RmsNormCudaArgs {
  const float* x = nullptr;             // [*, H]
  const std::uint32_t* rows = nullptr;  // [T] row of x for each row of out, or null: row t
  const float* weight = nullptr;        // [H]
  float eps = 0;
  std::uint32_t num_tokens = 0;   // T
  std::uint32_t hidden_size = 0;  // H
  Dtype dtype = Dtype::BF16;      // of out
  void* out = nullptr;            // [T, H]
};

void rms_norm_cuda(const CudaOp& op, const RmsNormCudaArgs& args);

struct RopeKvArgs {
  void* qkv = nullptr;  // [T, num_heads + 2 num_kv_heads, head_dim]: q is turned in place
  const float* cos_sin = nullptr;               // [T, 2, head_dim / 2]
  const std::uint32_t* slot_mapping = nullptr;  // [T] slots, all different, or kNoSlot
  std::uint32_t num_tokens = 0;
  std::uint32_t num_heads = 0;
};

// q turned in place; k, turned, and v written to the cache. A slot that the layer has not writes
// nothing.
void rope_kv_cuda(const CudaOp& op, const KvLayerCuda& layer, const RopeKvArgs& args);

struct SiluMulCudaArgs {
  const void* gate_up = nullptr;  // [T, 2, I]
  std::uint32_t num_tokens = 0;
  std::uint32_t intermediate_size = 0;
  Dtype dtype = Dtype::BF16;
  void* out = nullptr;  // [T, I]
};

void silu_mul_cuda(const CudaOp& op, const SiluMulCudaArgs& args);

}  // namespace inferno::ops::cuda
