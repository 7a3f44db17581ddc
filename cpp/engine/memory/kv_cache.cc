#include "engine/memory/kv_cache.h"

#include <algorithm>
#include <limits>
#include <string>

#include "engine/base/error.h"
#include "engine/base/layout.h"

namespace inferno::engine {
namespace {

// The layers of a cache of so many blocks, without memory.
std::vector<ops::KvLayer> describe(const DecoderSpec& spec, std::uint32_t block_size,
                                   std::uint32_t num_blocks) {
  std::vector<ops::KvLayer> layers;
  layers.reserve(spec.layers.size());
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& attention = layer.attention;
    const bool is_scaled = spec.kv == ops::Dtype::Fp8;
    layers.push_back({.k = nullptr,
                      .v = nullptr,
                      .dtype = spec.kv,
                      .num_blocks = num_blocks,
                      .block_size = block_size,
                      .num_kv_heads = attention.num_kv_heads,
                      .head_dim = attention.head_dim,
                      .k_scale = is_scaled ? attention.k_scale : 1.0F,
                      .v_scale = is_scaled ? attention.v_scale : 1.0F});
  }
  return layers;
}

// Bytes of `num_blocks` blocks, each layer's K and V aligned.
std::uint64_t total_bytes(const std::vector<ops::KvLayer>& layers, std::uint64_t num_blocks) {
  Layout layout;
  for (const ops::KvLayer& layer : layers) {
    layout.place(num_blocks * ops::kv_block_bytes(layer));
    layout.place(num_blocks * ops::kv_block_bytes(layer));
  }
  return layout.bytes();
}

}  // namespace

std::uint64_t KvCache::bytes_per_block(const DecoderSpec& spec, std::uint32_t block_size) {
  std::uint64_t bytes = 0;
  for (const ops::KvLayer& layer : describe(spec, block_size, 1)) {
    bytes += std::uint64_t{ops::kv_block_bytes(layer)} * 2;
  }
  return bytes;
}

KvCache::KvCache(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits)
    : layers_(describe(spec, limits.block_size, 1)) {
  const std::uint64_t per_block = bytes_per_block(spec, limits.block_size);
  // Slots are 32 bits wide.
  const std::uint64_t most = std::numeric_limits<std::uint32_t>::max() / limits.block_size;
  std::uint64_t num_blocks = std::min(limits.kv_bytes / per_block, most);
  while (num_blocks > 0 && total_bytes(layers_, num_blocks) > limits.kv_bytes) --num_blocks;
  if (num_blocks == 0) {
    throw Error(ErrorCode::kOutOfMemory, "need " + std::to_string(total_bytes(layers_, 1)) +
                                             ", have " + std::to_string(limits.kv_bytes) +
                                             " (kv_bytes, for one block)");
  }
  num_blocks_ = static_cast<std::uint32_t>(num_blocks);
  range_ = PoolRange(pool, total_bytes(layers_, num_blocks));
  Layout layout;
  for (ops::KvLayer& layer : layers_) {
    layer.num_blocks = num_blocks_;
    layer.k = range_.data() + layout.place(num_blocks * ops::kv_block_bytes(layer));
    layer.v = range_.data() + layout.place(num_blocks * ops::kv_block_bytes(layer));
  }
}

}  // namespace inferno::engine
