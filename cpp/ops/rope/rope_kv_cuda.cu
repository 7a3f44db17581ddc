// A thread for eight pairs of elements of a head of a token: elements i and i + head_dim / 2, which
// rope turns together. Values are moved by the same pairs.
#include "ops/cuda/elementwise_cuda.cuh"
#include "ops/cuda/elementwise_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kMaxThreads = 512;

template <typename Element>
struct Pairs {
  Pack<Element, kPack> first;
  Pack<Element, kPack> second;
};

template <typename Element>
__device__ Pairs<Element> turned(const Pairs<Element>& pairs, const float* cosines,
                                 const float* sines) {
  Pairs<Element> result;
#pragma unroll
  for (int begin = 0; begin < kPack; begin += 4) {
    const auto cosine = load_pack<float, 4>(cosines + begin);
    const auto sine = load_pack<float, 4>(sines + begin);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float first = to_float(pairs.first.at[begin + j]);
      const float second = to_float(pairs.second.at[begin + j]);
      result.first.at[begin + j] = from_float<Element>(first * cosine.at[j] - second * sine.at[j]);
      result.second.at[begin + j] = from_float<Element>(second * cosine.at[j] + first * sine.at[j]);
    }
  }
  return result;
}

// Where a head's row of a slot begins in the layer's k and v.
__device__ std::size_t cache_row(const KvLayerCuda& layer, std::uint32_t slot, std::uint32_t head) {
  const std::uint32_t block = slot / layer.block_size;
  const std::size_t row =
      (std::size_t{block} * layer.num_kv_heads + head) * layer.block_size + slot % layer.block_size;
  return row * layer.head_dim;
}

template <typename Element>
__global__ void __launch_bounds__(kMaxThreads) rope_kv_kernel(KvLayerCuda layer, RopeKvArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t half = layer.head_dim / 2;
  const std::uint32_t packs = half / kPack;  // of a half of a head
  const std::uint32_t num_rows = args.num_heads + 2 * layer.num_kv_heads;
  const std::uint32_t index = blockIdx.y * blockDim.x + threadIdx.x;
  const std::uint32_t row = index / packs;
  if (row >= num_rows) return;
  const std::uint32_t column = index % packs * kPack;
  const std::size_t token = blockIdx.x;
  const std::uint32_t slot = args.slot_mapping[token];
  const float* cosines = args.cos_sin + token * layer.head_dim + column;
  Element* from =
      static_cast<Element*>(args.qkv) + (token * num_rows + row) * layer.head_dim + column;
  Pairs<Element> pairs{load_pack<Element, kPack>(from), load_pack<Element, kPack>(from + half)};
  if (row < args.num_heads + layer.num_kv_heads) pairs = turned(pairs, cosines, cosines + half);

  Element* to = from;
  if (row >= args.num_heads) {
    if (slot >= layer.num_blocks * layer.block_size) return;  // kNoSlot among them
    const bool is_value = row >= args.num_heads + layer.num_kv_heads;
    const std::uint32_t head = (row - args.num_heads) % layer.num_kv_heads;
    to =
        static_cast<Element*>(is_value ? layer.v : layer.k) + cache_row(layer, slot, head) + column;
  }
  store_pack(to, pairs.first);
  store_pack(to + half, pairs.second);
}

}  // namespace

void rope_kv_cuda(const CudaOp& op, const KvLayerCuda& layer, const RopeKvArgs& args) {
  if (layer.head_dim % (2 * kPack) != 0) {
    throw std::invalid_argument("other: rope_kv: head_dim " + std::to_string(layer.head_dim) +
                                ", expected a multiple of 16");
  }
  const std::uint32_t num_rows = args.num_heads + 2 * layer.num_kv_heads;
  const std::uint32_t items = num_rows * (layer.head_dim / 2 / kPack);
  if (args.num_tokens == 0 || items == 0) return;
  const std::uint32_t parts = (items + kMaxThreads - 1) / kMaxThreads;
  const std::uint32_t threads = (items + 32 * parts - 1) / (32 * parts) * 32;
  with_element(layer.dtype, [&](auto element) {
    launch(op, rope_kv_kernel<decltype(element)>, {dim3(args.num_tokens, parts), threads}, layer,
           args);
  });
}

}  // namespace inferno::ops::cuda
