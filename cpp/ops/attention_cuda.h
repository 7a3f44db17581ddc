// Causal attention over the paged KV cache on the GPU: the contract of attention.h for elements of
// 16 bits, prefill and decode mixed in one step. Dao, "FlashAttention-2", 2023; Shah et al.,
// "FlashAttention-3", 2024; Dao et al., "Flash-Decoding for long-context inference", 2023 (split
// KV).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/cuda_op.h"

namespace inferno::ops::cuda {

// The KV blocks of one layer. k and v: [num_blocks, num_kv_heads, block_size, head_dim].
struct KvLayerCuda {
  void* k = nullptr;
  void* v = nullptr;
  Dtype dtype = Dtype::BF16;
  std::uint32_t num_blocks = 0;
  std::uint32_t block_size = 0;  // 16, 32, 64 or 128
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;  // 32, 64, 96, 128 or 256
};

// One block of the prefill kernel: query tokens first_query … of a sequence.
struct AttentionTile {
  std::uint32_t seq;
  std::uint32_t first_query;  // in the sequence's query tokens
};

// Query tokens of one tile.
std::uint32_t attention_tile_rows(std::uint32_t head_dim, std::uint32_t num_heads,
                                  std::uint32_t num_kv_heads);

struct AttentionCudaArgs {
  const void* qkv = nullptr;  // [T, num_heads + 2 num_kv_heads, head_dim]; q is turned already
  std::uint32_t num_heads = 0;
  float scale = 0;
  std::uint32_t num_seqs = 0;
  const std::uint32_t* cu_query_lens = nullptr;  // [S + 1]
  const std::uint32_t* context_lens = nullptr;   // [S]; 0 (padding of a graph): out is zeros
  const std::uint32_t* block_tables = nullptr;   // [S, block_table_stride]
  std::uint32_t block_table_stride = 0;
  // Sequences of one query token, by index; each of num_decodes sequences takes part once.
  const std::uint32_t* decode_seqs = nullptr;  // [num_decodes]
  std::uint32_t num_decodes = 0;
  // The longest first, which balances the load; each tile of each sequence of several query tokens.
  const AttentionTile* tiles = nullptr;  // [num_tiles]
  std::uint32_t num_tiles = 0;
  void* out = nullptr;  // [T, num_heads, head_dim]
  // [attention_cuda_workspace_bytes] of device memory, zeroed once before the first call.
  void* workspace = nullptr;
};

// What the sum over splits does depends on num_decodes and the context lengths; with
// `batch_invariant` a row's bits depend on its own q and cached positions only, whether it comes
// alone, in a batch, or as one of several query tokens (every sequence is then given as tiles, and
// num_decodes is 0).
void attention_cuda(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args);

std::size_t attention_cuda_workspace_bytes(std::uint32_t max_seqs, std::uint32_t num_heads,
                                           std::uint32_t num_kv_heads, std::uint32_t head_dim);

// Throws "other: …" for a shape that the kernels have not got, naming what they have.
void check_attention_cuda(const KvLayerCuda& layer, std::uint32_t num_heads);

}  // namespace inferno::ops::cuda
