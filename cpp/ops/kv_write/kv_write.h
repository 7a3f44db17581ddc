// The layout of KV blocks, and writing new keys and values into them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/base/dtype.h"
#include "ops/base/op_context.h"

namespace inferno::ops {

// The KV blocks of one layer; non-owning. Slot = block_id * block_size + offset.
//   k: [num_blocks, num_kv_heads, head_dim, block_size]   keys lie across, so that scores of
//   neighbouring
//                                                         positions are one vector
//   v: [num_blocks, num_kv_heads, block_size, head_dim]
struct KvLayer {
  std::byte* k;
  std::byte* v;
  Dtype dtype;
  std::uint32_t num_blocks;
  std::uint32_t block_size;  // any; multiples of 16 are read fastest
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  // Of fp8, else 1: what is stored is a number divided by its scale.
  float k_scale = 1.0F;
  float v_scale = 1.0F;
};

// Bytes of one block's keys (as many as of its values) in one layer.
std::size_t kv_block_bytes(const KvLayer& layer) noexcept;

// Index, in elements, of a slot's element `dim` of head `head`.
std::size_t key_index(const KvLayer& layer, std::size_t slot, std::uint32_t head,
                      std::uint32_t dim) noexcept;
std::size_t value_index(const KvLayer& layer, std::size_t slot, std::uint32_t head,
                        std::uint32_t dim) noexcept;

struct KvWriteArgs {
  const float* k;          // [T, num_kv_heads, head_dim], already turned by rope
  const float* v;          // [T, num_kv_heads, head_dim]
  std::size_t row_stride;  // elements between rows of T, in k and in v
  std::span<const std::uint32_t> slot_mapping;  // [T], all different
};

// Writes token t's keys and values to slot slot_mapping[t], divided by their scale and rounded to
// the layer's dtype (nearest even; beyond what fp8 has, to its largest number). Throws
// invalid_batch if a slot is not below num_blocks * block_size; nothing is written then.
void kv_write(const OpContext& context, const KvLayer& layer, const KvWriteArgs& args);

}  // namespace inferno::ops
