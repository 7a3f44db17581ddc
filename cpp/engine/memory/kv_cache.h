// The paged KV cache of one model: blocks of all layers in one range of the pool.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"
#include "ops/kv_write/kv_write.h"

namespace inferno::engine {

class KvCache {
 public:
  // Takes as many blocks as kv_bytes hold. Throws out_of_memory if that is none, or if the pool has
  // not got them.
  KvCache(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits);

  // K and V of one block in all layers.
  static std::uint64_t bytes_per_block(const DecoderSpec& spec, std::uint32_t block_size);

  std::uint32_t num_blocks() const { return num_blocks_; }
  std::uint64_t bytes() const { return range_.bytes(); }

  // K and V [num_blocks, …] of one layer, as kv_write and attention take them. Layers may differ in
  // heads and head size.
  const ops::KvLayer& layer(std::uint32_t index) const { return layers_[index]; }

 private:
  std::uint32_t num_blocks_ = 0;
  PoolRange range_;
  std::vector<ops::KvLayer> layers_;  // [num_layers]
};

}  // namespace inferno::engine
