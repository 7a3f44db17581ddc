// What the prefill kernels share: the work of a block, found from its tile.
#pragma once

#include <cstdint>

#include "ops/attention/cuda/attention_prefill.h"
#include "ops/attention/cuda/attention_score.cuh"

namespace inferno::ops::cuda {

struct PrefillParams {
  const void* qkv;
  const void* k;
  const void* v;
  void* out;
  const std::uint32_t* cu_query_lens;
  const std::uint32_t* context_lens;
  const std::uint32_t* block_tables;
  const AttentionTile* tiles;
  std::uint32_t block_table_stride;
  std::uint32_t block_shift;  // log 2 of block_size
  std::uint32_t num_blocks;
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t num_tiles;
  float v_scale;  // of the output
  ScoreRule rule;
};

// Row r of a block is head r % group of the KV head's group, of token r / group of the tile: what
// shares keys shares a block, so that a few query tokens fill it, too.
struct PrefillTask {
  const std::uint32_t* table;
  std::uint32_t kv_head;
  std::uint32_t group;
  std::uint32_t first_token;     // of the tile, in the step
  std::uint32_t first_position;  // its position
  std::uint32_t num_rows;
  std::uint32_t num_keys;  // positions that the tile's last token sees

  __device__ std::uint32_t position(std::uint32_t row) const {
    return first_position + row / group;
  }

  __device__ std::uint32_t head(std::uint32_t row) const { return kv_head * group + row % group; }

  // The first position that a row of the tile sees: its first token's.
  template <bool kPlain>
  __device__ std::uint32_t first_key(const ScoreRule& rule) const {
    return rule.first_seen<kPlain>(first_position + 1);
  }

  // In heads: the place of a row's head in an array of `heads_per_token` heads for each token.
  __device__ std::size_t head_index(std::uint32_t row, std::uint32_t heads_per_token) const {
    return std::size_t{first_token + row / group} * heads_per_token + head(row);
  }
};

__device__ inline PrefillTask prefill_task(const PrefillParams& p, std::uint32_t index) {
  const AttentionTile tile = p.tiles[index / p.num_kv_heads];
  const std::uint32_t begin = p.cu_query_lens[tile.seq];
  const std::uint32_t query_len = p.cu_query_lens[tile.seq + 1] - begin;
  PrefillTask task;
  task.table = p.block_tables + std::size_t{tile.seq} * p.block_table_stride;
  task.kv_head = index % p.num_kv_heads;
  task.group = p.num_heads / p.num_kv_heads;
  task.first_token = begin + tile.first_query;
  task.first_position = p.context_lens[tile.seq] - query_len + tile.first_query;
  const std::uint32_t num_tokens = min(query_len - tile.first_query, kPrefillRows / task.group);
  task.num_rows = num_tokens * task.group;
  task.num_keys = task.first_position + num_tokens;
  return task;
}

// What a row's sums are multiplied with at the end; of a row that sees no position they are zeros.
__device__ inline float inverse_of_total(float total) {
  return total == 0.0F ? 0.0F : 1.0F / total;
}

// The portable kernel over k and v in e4m3.
void attention_prefill_fp8(const CudaOp& op, const KvLayerCuda& layer, const PrefillParams& params);

// The kernels for sm_90a, which have all head sizes but 32.
bool has_attention_prefill_sm90(const CudaOp& op, const KvLayerCuda& layer);
void attention_prefill_sm90(const CudaOp& op, const KvLayerCuda& layer,
                            const PrefillParams& params);
void attention_prefill_sm90_fp8(const CudaOp& op, const KvLayerCuda& layer,
                                const PrefillParams& params);

}  // namespace inferno::ops::cuda
