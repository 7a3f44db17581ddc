// Causal attention over a paged KV cache, one entry for prefill, decode and any mixture of both.
// Vaswani et al. 2017 (attention); Ainslie et al., "GQA", 2023 (grouped queries); Milakov and
// Gimelshein, "Online normalizer calculation for softmax", 2018, and Dao et al., "FlashAttention",
// 2022 (one pass over the positions in tiles); Kwon et al., "PagedAttention", 2023 (block tables).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/attention/attention_rule.h"
#include "ops/base/op_context.h"
#include "ops/kv_write/kv_write.h"

namespace inferno::ops {

struct AttentionArgs {
  const float* q;            // [T, num_heads, head_dim], already turned by rope
  std::size_t q_row_stride;  // elements between rows of T in q
  std::uint32_t num_heads;   // a multiple of layer.num_kv_heads; head h reads KV head h / group
  AttentionRule rule;
  std::span<const std::uint32_t> cu_query_lens;  // [S + 1] running sum of query_lens, from 0
  std::span<const std::uint32_t>
      context_lens;  // [S], at least query_len; this step's tokens included
  std::span<const std::uint32_t> block_tables;  // [S, block_table_stride] block ids
  std::uint32_t block_table_stride;
  float* out;  // [T, num_heads, head_dim], dense
};

// out[t, h, :] = sum over seen p of softmax_p(score(p)) * v[p, :]
// score(p) = rule.scale * q[t, h, :] . k[p, :], then capped; a sink is one more score in the
// softmax. Token i of the query_len tokens of a sequence is at position
// pos(t) = context_len - query_len + i and sees rule.first_seen(pos(t)) to pos(t). Their keys and
// values must be in the cache already (kv_write); their scales, if any, cost nothing per position:
// the keys' is multiplied into rule.scale, the values' into the sums. A sequence with query_len 0
// is left out.
//
// Blocks wholly before what the first of the query_len tokens sees may have been given back: their
// ids are not read. So the cost of a token does not grow with a context beyond the window.
//
// Order of sums: positions are cut into tiles of kPositionTile from position 0 up; a row begins at
// the tile of the first position that it sees, with the sink, if any, as its first term. A score is
// the sum over dimensions in their order; a tile's maximum rescales the running sums, to which its
// terms are added in order of position. Positions that are not seen take no part, so the bits of a
// row depend on pos(t), q[t] and the cached values of the positions that it sees only: not on
// chunking, batch, threads or the blocks' places.
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
