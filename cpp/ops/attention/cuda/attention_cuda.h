// Causal attention over the paged KV cache on the GPU: the contract of attention.h for elements of
// 16 bits, prefill and decode mixed in one step. Dao, "FlashAttention-2", 2023; Shah et al.,
// "FlashAttention-3", 2024; Dao et al., "Flash-Decoding for long-context inference", 2023 (split
// KV).
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/attention/attention_rule.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

// The KV blocks of one layer. k and v: [num_blocks, num_kv_heads, block_size, head_dim].
struct KvLayerCuda {
  void* k = nullptr;
  void* v = nullptr;
  Dtype dtype = Dtype::BF16;  // of queries and output, and of k and v, unless these are fp8
  std::uint32_t num_blocks = 0;
  std::uint32_t block_size = 0;  // 16, 32, 64 or 128
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;  // 32, 64, 96, 128 or 256
  // k and v are e4m3: numbers divided by their scale.
  bool fp8 = false;
  float k_scale = 1.0F;
  float v_scale = 1.0F;
};

// One piece of prefill work: query tokens first_query … of a sequence, up to attention_tile_rows of
// them.
struct AttentionTile {
  std::uint32_t seq;
  std::uint32_t first_query;  // in the sequence's query tokens
};

// Query tokens of one tile; any multiple of it may be a tile's first_query.
std::uint32_t attention_tile_rows(std::uint32_t num_heads, std::uint32_t num_kv_heads);

// The arrays of std::uint32_t and the tiles are read before the previous kernel has ended: what
// writes them is not the kernel just before, but a copy or a kernel which that one has waited for.
struct AttentionCudaArgs {
  const void* qkv = nullptr;  // [T, num_heads + 2 num_kv_heads, head_dim]
  // [T, 2, head_dim / 2], or null: q is turned already, k and v are in the cache. Else all are as
  // the product left them: q and k are turned by halves and a token's k and v are written to the
  // cache as by rope_kv_cuda. For decodes only.
  const float* cos_sin = nullptr;
  std::uint32_t num_heads = 0;
  AttentionRule rule{};  // its scale is above 0; its sinks are weights: not written by a kernel
  const std::uint32_t* cu_query_lens = nullptr;  // [S + 1]
  const std::uint32_t* context_lens = nullptr;   // [S]; 0 (padding of a graph): out is zeros
  // [S, block_table_stride]. Entries of blocks that end before the window of a sequence's first
  // query token may hold anything: such blocks may have been given back.
  const std::uint32_t* block_tables = nullptr;
  std::uint32_t block_table_stride = 0;
  // Sequences of one query token, by index; each of num_decodes sequences takes part once.
  const std::uint32_t* decode_seqs = nullptr;  // [num_decodes]
  std::uint32_t num_decodes = 0;
  // The longest first, which balances the load; each tile of each sequence of several query tokens.
  const AttentionTile* tiles = nullptr;  // [num_tiles]
  std::uint32_t num_tiles = 0;
  void* out = nullptr;  // [T, num_heads, head_dim]
  // Tiles go through the portable kernel on every card, to hold the others against.
  bool reference = false;
  // [attention_cuda_workspace_bytes], zeroed once before the first call. Calls that share it follow
  // each other in one stream.
  void* workspace = nullptr;
};

// A tile's rows: the bits of a row depend on its own q and the cached positions that it sees only,
// whether it comes alone, in a batch, or as one of several query tokens, at any place among them. A
// decode's rows: also on num_decodes, which decides how many blocks share the positions. So who
// needs the same bits always gives every sequence as tiles, also those of one query token, and
// num_decodes is 0.
//
// The launches depend on num_decodes, num_tiles and the shapes only: a captured graph follows what
// the arrays hold at each replay.
void attention_cuda(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args);

std::size_t attention_cuda_workspace_bytes(std::uint32_t head_dim);

// Throws "other: …" for a shape that the kernels have not got, naming what they have.
void check_attention_cuda(const KvLayerCuda& layer, std::uint32_t num_heads);

}  // namespace inferno::ops::cuda
