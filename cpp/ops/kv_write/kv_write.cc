#include "ops/kv_write/kv_write.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace inferno::ops {

namespace {

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::size_t kElementsPerChunk = 8192;

template <Dtype D>
float scaled(float value, float scale) {
  return D == Dtype::Fp8 ? value / scale : value;
}

template <Dtype D>
void write_token(const KvLayer& layer, const KvWriteArgs& args, std::size_t token) {
  const std::size_t slot = args.slot_mapping[token];
  for (std::uint32_t head = 0; head < layer.num_kv_heads; ++head) {
    const std::size_t source = token * args.row_stride + std::size_t{head} * layer.head_dim;
    const std::size_t key = key_index(layer, slot, head, 0);
    for (std::size_t dim = 0; dim < layer.head_dim; ++dim) {
      store_element(layer.k, D, key + dim * layer.block_size,
                    scaled<D>(args.k[source + dim], layer.k_scale));
    }
    const std::size_t value = value_index(layer, slot, head, 0);
    for (std::size_t dim = 0; dim < layer.head_dim; ++dim) {
      store_element(layer.v, D, value + dim, scaled<D>(args.v[source + dim], layer.v_scale));
    }
  }
}

using WriteToken = void (*)(const KvLayer& layer, const KvWriteArgs& args, std::size_t token);

WriteToken write_token_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
      return write_token<Dtype::F32>;
    case Dtype::F16:
      return write_token<Dtype::F16>;
    case Dtype::Fp8:
      return write_token<Dtype::Fp8>;
    default:
      return write_token<Dtype::BF16>;
  }
}

}  // namespace

std::size_t kv_block_bytes(const KvLayer& layer) noexcept {
  return std::size_t{layer.num_kv_heads} * layer.head_dim * layer.block_size *
         dtype_bytes(layer.dtype);
}

std::size_t key_index(const KvLayer& layer, std::size_t slot, std::uint32_t head,
                      std::uint32_t dim) noexcept {
  const std::size_t block = slot / layer.block_size;
  const std::size_t row = (block * layer.num_kv_heads + head) * layer.head_dim + dim;
  return row * layer.block_size + slot % layer.block_size;
}

std::size_t value_index(const KvLayer& layer, std::size_t slot, std::uint32_t head,
                        std::uint32_t dim) noexcept {
  const std::size_t block = slot / layer.block_size;
  const std::size_t row =
      (block * layer.num_kv_heads + head) * layer.block_size + slot % layer.block_size;
  return row * layer.head_dim + dim;
}

void kv_write(const OpContext& context, const KvLayer& layer, const KvWriteArgs& args) {
  const std::size_t num_slots = std::size_t{layer.num_blocks} * layer.block_size;
  for (const std::uint32_t slot : args.slot_mapping) {
    if (slot >= num_slots) {
      throw std::invalid_argument("invalid_batch: kv_write: slot " + std::to_string(slot) +
                                  ", expected below " + std::to_string(num_slots));
    }
  }
  const WriteToken write = write_token_of(layer.dtype);
  const std::size_t row_size = std::size_t{layer.num_kv_heads} * layer.head_dim * 2;
  const std::size_t step =
      std::max<std::size_t>(1, kElementsPerChunk / std::max<std::size_t>(1, row_size));
  const std::size_t num_tokens = args.slot_mapping.size();
  const auto num_chunks = static_cast<std::uint32_t>((num_tokens + step - 1) / step);
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t end = std::min(num_tokens, (chunk + 1) * step);
    for (std::size_t token = chunk * step; token < end; ++token) write(layer, args, token);
  });
}

}  // namespace inferno::ops
