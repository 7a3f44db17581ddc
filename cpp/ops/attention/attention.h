// Causal attention over a paged KV cache, one entry for prefill, decode and any mixture of both.
// Vaswani et al. 2017 (attention); Ainslie et al., "GQA", 2023 (grouped queries); Milakov and
// Gimelshein, "Online normalizer calculation for softmax", 2018, and Dao et al., "FlashAttention",
// 2022 (one pass over the positions in tiles); Kwon et al., "PagedAttention", 2023 (block tables).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/base/op_context.h"
#include "ops/kv_write/kv_write.h"

namespace inferno::ops {

struct AttentionArgs {
  const float* q;            // [T, num_heads, head_dim], already turned by rope
  std::size_t q_row_stride;  // elements between rows of T in q
  std::uint32_t num_heads;   // a multiple of layer.num_kv_heads; head h reads KV head h / group
  float scale;               // of the scores, usually 1 / sqrt(head_dim)
  std::span<const std::uint32_t> cu_query_lens;  // [S + 1] running sum of query_lens, from 0
  std::span<const std::uint32_t>
      context_lens;  // [S], at least query_len; this step's tokens included
  std::span<const std::uint32_t> block_tables;  // [S, block_table_stride] block ids
  std::uint32_t block_table_stride;
  float* out;  // [T, num_heads, head_dim], dense
};

// out[t, h, :] = sum over p <= pos(t) of softmax_p(scale * q[t, h, :] . k[p, :]) * v[p, :]
// Token i of the query_len tokens of a sequence is at position context_len - query_len + i. Their
// keys and values must be in the cache already (kv_write). A sequence with query_len 0 is left out.
//
// Order of sums: positions are cut into tiles of kPositionTile from position 0 up; a score is the
// sum over dimensions in their order; a tile's maximum rescales the running sums, to which its
// terms are added in order of position. Positions beyond pos(t) take no part, so the bits of a row
// depend on q[t] and the cached values of positions 0 to pos(t) only: not on chunking, batch,
// threads or the blocks' places.
//
// Throws invalid_batch where lengths, tables or block ids contradict each other or the layer.
void attention(const OpContext& context, const KvLayer& layer, const AttentionArgs& args);

inline constexpr std::uint32_t kPositionTile = 32;

struct AttentionLimits {
  std::uint32_t num_threads;
  std::uint32_t max_sequences;
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
};

std::size_t attention_workspace_bytes(const AttentionLimits& limits) noexcept;

}  // namespace inferno::ops
