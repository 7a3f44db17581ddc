#include "engine/kv_cache.h"

#include <algorithm>
#include <limits>
#include <string>

#include "engine/error.h"
#include "engine/layout.h"

namespace inferno::engine {
namespace {

ops::KvLayer describe(const ModelShape& shape, std::uint32_t block_size, std::uint32_t num_blocks) {
  return {nullptr,       nullptr, shape.dtype, num_blocks, block_size, shape.num_kv_heads,
          shape.head_dim};
}

// Bytes of `num_blocks` blocks, each layer's K and V aligned.
std::uint64_t total_bytes(const ops::KvLayer& layer, std::uint64_t num_blocks,
                          std::uint32_t num_layers) {
  Layout one;
  one.place(num_blocks * ops::kv_block_bytes(layer));
  return one.bytes() * 2 * num_layers;
}

}  // namespace

std::uint64_t KvCache::bytes_per_block(const ModelShape& shape, std::uint32_t block_size) {
  return std::uint64_t{ops::kv_block_bytes(describe(shape, block_size, 1))} * 2 * shape.num_layers;
}

KvCache::KvCache(MemoryPool& pool, const ModelShape& shape, const ModelLimits& limits) {
  const std::uint64_t per_block = bytes_per_block(shape, limits.block_size);
  ops::KvLayer layer = describe(shape, limits.block_size, 1);
  // Slots are 32 bits wide.
  const std::uint64_t most = std::numeric_limits<std::uint32_t>::max() / limits.block_size;
  std::uint64_t num_blocks = std::min(limits.kv_bytes / per_block, most);
  while (num_blocks > 0 && total_bytes(layer, num_blocks, shape.num_layers) > limits.kv_bytes) {
    --num_blocks;
  }
  if (num_blocks == 0) {
    const std::uint64_t need = total_bytes(layer, 1, shape.num_layers);
    throw Error(ErrorCode::kOutOfMemory, "need " + std::to_string(need) + ", have " +
                                             std::to_string(limits.kv_bytes) +
                                             " (kv_bytes, for one block)");
  }
  num_blocks_ = static_cast<std::uint32_t>(num_blocks);
  range_ = PoolRange(pool, total_bytes(layer, num_blocks, shape.num_layers));
  layer.num_blocks = num_blocks_;
  layers_.reserve(shape.num_layers);
  Layout layout;
  for (std::uint32_t i = 0; i < shape.num_layers; ++i) {
    layer.k = range_.data() + layout.place(num_blocks * ops::kv_block_bytes(layer));
    layer.v = range_.data() + layout.place(num_blocks * ops::kv_block_bytes(layer));
    layers_.push_back(layer);
  }
}

}  // namespace inferno::engine
