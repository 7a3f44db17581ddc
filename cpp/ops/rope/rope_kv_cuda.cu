// A thread for sixteen elements of a head of a token, as two packs of eight. Most models ask for
// one thing only: all of a head turns, by halves; then the packs are elements i and
// i + head_dim / 2, which turn together, and rope_kv_kernel does that and no more. Everything else
// is any_rope_kv_kernel's, whose threads of one head agree on every condition.
#include <bit>
#include <type_traits>

#include "ops/cuda/e4m3.cuh"
#include "ops/cuda/pack.cuh"
#include "ops/rope/rope_kv_cuda.h"
#include "ops/rope/turn.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kMaxThreads = 512;     // of a block of rope_kv_kernel
constexpr std::uint32_t kMaxAnyThreads = 256;  // of any_rope_kv_kernel
constexpr std::uint32_t kMaxLanes = 32;  // of a head, which any_rope_kv_kernel adds up in a warp

template <typename Value>
struct Pairs {
  Pack<Value, kPack> first;
  Pack<Value, kPack> second;
};

// The packs at `first` and `second` elements behind it.
template <typename Value>
__device__ Pairs<Value> load_pairs(const Value* first, std::uint32_t second) {
  return {load_pack<Value, kPack>(first), load_pack<Value, kPack>(first + second)};
}

template <typename Value>
__device__ void store_pairs(Value* first, std::uint32_t second, const Pairs<Value>& pairs) {
  store_pack(first, pairs.first);
  store_pack(first + second, pairs.second);
}

template <typename Element>
__device__ Pairs<float> to_floats(const Pairs<Element>& pairs) {
  Pairs<float> values;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    values.first.at[j] = to_float(pairs.first.at[j]);
    values.second.at[j] = to_float(pairs.second.at[j]);
  }
  return values;
}

template <typename Element>
__device__ Pairs<Element> rounded(const Pairs<float>& values) {
  Pairs<Element> pairs;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    pairs.first.at[j] = from_float<Element>(values.first.at[j]);
    pairs.second.at[j] = from_float<Element>(values.second.at[j]);
  }
  return pairs;
}

__device__ Pack<std::uint16_t, kPack / 2> codes_of(const Pack<float, kPack>& values, float scale) {
  Pack<std::uint16_t, kPack / 2> codes;
#pragma unroll
  for (int j = 0; j < kPack / 2; ++j) {
    codes.at[j] = nearest_codes(values.at[2 * j] / scale, values.at[2 * j + 1] / scale);
  }
  return codes;
}

template <typename Result, typename Element>
__device__ Pairs<Result> turned(const Pairs<Element>& pairs, const float* cosines,
                                const float* sines) {
  Pairs<Result> result;
#pragma unroll
  for (int begin = 0; begin < kPack; begin += 4) {
    const auto cosine = load_pack<float, 4>(cosines + begin);
    const auto sine = load_pack<float, 4>(sines + begin);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float first = to_float(pairs.first.at[begin + j]);
      float second = to_float(pairs.second.at[begin + j]);
      turn(first, second, cosine.at[j], sine.at[j]);
      result.first.at[begin + j] = from_float<Result>(first);
      result.second.at[begin + j] = from_float<Result>(second);
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

// To the layer's k or v of e4m3, from element `at` on.
__device__ void store_codes(const KvLayerCuda& layer, bool is_value, std::size_t at,
                            std::uint32_t second, const Pairs<float>& values) {
  const float scale = is_value ? layer.v_scale : layer.k_scale;
  auto* codes = static_cast<std::uint16_t*>(is_value ? layer.v : layer.k) + at / 2;
  store_pack(codes, codes_of(values.first, scale));
  store_pack(codes + second / 2, codes_of(values.second, scale));
}

// What rope_kv_kernel needs of RopeKvArgs: a launch takes longer with more.
struct PlainArgs {
  void* qkv;
  const float* cos_sin;
  const std::uint32_t* slot_mapping;
  std::uint32_t num_heads;
};

// Kv: what the cache holds, elements or e4m3.
template <typename Element, typename Kv>
__global__ void __launch_bounds__(kMaxThreads) rope_kv_kernel(KvLayerCuda layer, PlainArgs args) {
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
  auto pairs = load_pairs<Element>(from, half);
  const bool is_value = row >= args.num_heads + layer.num_kv_heads;
  if (row < args.num_heads) {
    return store_pairs(from, half, turned<Element>(pairs, cosines, cosines + half));
  }
  if (slot >= layer.num_blocks * layer.block_size) return;  // kNoSlot among them
  const std::uint32_t head = (row - args.num_heads) % layer.num_kv_heads;
  const std::size_t to = cache_row(layer, slot, head) + column;
  if constexpr (std::is_same_v<Kv, E4m3>) {
    const auto values = is_value ? to_floats(pairs) : turned<float>(pairs, cosines, cosines + half);
    store_codes(layer, is_value, to, half, values);
  } else {
    if (!is_value) pairs = turned<Element>(pairs, cosines, cosines + half);
    store_pairs(static_cast<Kv*>(is_value ? layer.v : layer.k) + to, half, pairs);
  }
}

// Ones where there is no weight.
__device__ Pairs<float> load_weight(const float* first, std::uint32_t second) {
  if (first != nullptr) return load_pairs(first, second);
  Pairs<float> ones;
#pragma unroll
  for (int j = 0; j < kPack; ++j) ones.first.at[j] = ones.second.at[j] = 1.0F;
  return ones;
}

// The norm of a head that `lanes` neighbouring lanes have. Its sum goes through a lane's values,
// then through the lanes by halves, whatever the warp's other heads are: values, which have no
// norm, may be among them.
__device__ void normalise(Pairs<float>& values, const Pairs<float>& weight, float eps,
                          std::uint32_t head_dim, std::uint32_t lanes) {
  float squares = 0.0F;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    squares += values.first.at[j] * values.first.at[j];
    squares += values.second.at[j] * values.second.at[j];
  }
  const std::uint32_t mask = (~0U >> (32 - lanes)) << (threadIdx.x % 32 / lanes * lanes);
  for (std::uint32_t lane = lanes / 2; lane > 0; lane /= 2) {
    squares += __shfl_xor_sync(mask, squares, lane);
  }
  const float scale = 1.0F / sqrtf(squares / static_cast<float>(head_dim) + eps);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    values.first.at[j] *= scale * weight.first.at[j];
    values.second.at[j] *= scale * weight.second.at[j];
  }
}

// By eight cosines and their sines.
__device__ void turn_pairs(Pairs<float>& values, const Pairs<float>& angles, bool interleaved) {
  auto& [first, second] = values;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    if (interleaved) {
      auto& pack = j < kPack / 2 ? first : second;
      const int i = j % (kPack / 2) * 2;
      turn(pack.at[i], pack.at[i + 1], angles.first.at[j], angles.second.at[j]);
    } else {
      turn(first.at[j], second.at[j], angles.first.at[j], angles.second.at[j]);
    }
  }
}

__device__ void scale_query(Pairs<float>& values, const RopeKvArgs& args, std::size_t token) {
  const auto position = static_cast<float>(args.positions[token]);
  const float periods = floorf(position / args.query_original_positions);
  const float scale = 1.0F + args.query_beta * logf(1.0F + periods);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    values.first.at[j] *= scale;
    values.second.at[j] *= scale;
  }
}

// How the heads of a token are given to threads.
struct Heads {
  std::uint32_t first;  // 0, or the first of k where q stays as it is
  std::uint32_t lanes;  // of a head, a power of two; the last ones may have no elements
};

// Of as many registers that four blocks share a multiprocessor.
template <typename Element, typename Kv>
__global__ void __launch_bounds__(kMaxAnyThreads, 4)
    any_rope_kv_kernel(KvLayerCuda layer, RopeKvArgs args, Heads heads) {
  let_next_start();
  const std::uint32_t num_rows = args.num_heads + 2 * layer.num_kv_heads;
  const std::uint32_t index = blockIdx.y * blockDim.x + threadIdx.x;
  const std::uint32_t row = heads.first + index / heads.lanes;
  if (row >= num_rows) return;
  const bool is_query = row < args.num_heads;
  const bool is_value = row >= args.num_heads + layer.num_kv_heads;
  const std::uint32_t lane = index % heads.lanes;
  const bool exists = lane * 2 * kPack < layer.head_dim;
  const bool turns = !is_value && args.cos_sin != nullptr && lane * 2 * kPack < args.rotary_dim;
  const bool by_halves = turns && !args.interleaved;
  const std::uint32_t first = lane * (by_halves ? kPack : 2 * kPack);
  const std::uint32_t second = by_halves ? args.rotary_dim / 2 : kPack;
  const RowNorm norm = is_value ? RowNorm{} : is_query ? args.q_norm : args.k_norm;
  const bool has_weight = exists && norm.weight != nullptr;
  const auto weight = load_weight(has_weight ? norm.weight + first : nullptr, second);
  wait_for_previous();

  const std::size_t token = blockIdx.x;
  const std::uint32_t slot = args.slot_mapping[token];
  Element* from = static_cast<Element*>(args.qkv) + (token * num_rows + row) * layer.head_dim;
  Pairs<Element> pairs{};
  if (exists) pairs = load_pairs<Element>(from + first, second);
  Pairs<float> angles{};
  if (turns) {
    const float* cosines = args.cos_sin + token * args.rotary_dim + lane * kPack;
    angles = load_pairs(cosines, args.rotary_dim / 2);
  }
  const auto changed = [&] {
    auto values = to_floats(pairs);
    if (norm.normalise) normalise(values, weight, norm.eps, layer.head_dim, heads.lanes);
    if (turns) turn_pairs(values, angles, args.interleaved);
    if (is_query && args.query_beta != 0.0F) scale_query(values, args, token);
    return values;
  };
  const bool has_slot = slot < layer.num_blocks * layer.block_size;  // kNoSlot is beyond
  const std::uint32_t head = (row - args.num_heads) % layer.num_kv_heads;
  if constexpr (std::is_same_v<Kv, E4m3>) {
    const auto values = is_value ? to_floats(pairs) : changed();
    if (!exists) return;
    if (is_query) return store_pairs(from + first, second, rounded<Element>(values));
    if (!has_slot) return;
    store_codes(layer, is_value, cache_row(layer, slot, head) + first, second, values);
  } else {
    if (!is_value) pairs = rounded<Element>(changed());
    if (!exists || !(is_query || has_slot)) return;
    Element* to = from;
    if (!is_query) {
      to = static_cast<Element*>(is_value ? layer.v : layer.k) + cache_row(layer, slot, head);
    }
    store_pairs(to + first, second, pairs);
  }
}

bool is_plain(const KvLayerCuda& layer, const RopeKvArgs& args) {
  return args.cos_sin != nullptr && args.rotary_dim == layer.head_dim && !args.interleaved &&
         !args.q_norm.normalise && !args.k_norm.normalise && args.query_beta == 0.0F;
}

void check_rope_kv(const KvLayerCuda& layer, const RopeKvArgs& args) {
  const auto require = [](bool fits, const char* name, std::uint32_t got, const char* expected) {
    if (fits) return;
    throw std::invalid_argument(std::string("other: rope_kv: ") + name + " " + std::to_string(got) +
                                ", expected " + expected);
  };
  require(layer.head_dim % (2 * kPack) == 0 && layer.head_dim <= kMaxLanes * 2 * kPack, "head_dim",
          layer.head_dim, "a multiple of 16 up to 512");
  if (args.cos_sin == nullptr) return;
  require(args.rotary_dim % (2 * kPack) == 0 && args.rotary_dim > 0 &&
              args.rotary_dim <= layer.head_dim,
          "rotary_dim", args.rotary_dim, "a multiple of 16 from 16 to head_dim");
}

// A block's threads and a token's blocks for as many threads.
LaunchShape shape_for(std::uint32_t num_tokens, std::uint32_t items, std::uint32_t max_threads) {
  const std::uint32_t parts = (items + max_threads - 1) / max_threads;
  const std::uint32_t threads = (items + 32 * parts - 1) / (32 * parts) * 32;
  return {dim3(num_tokens, parts), threads};
}

template <typename Element, typename Kv>
void launch_rope_kv(const CudaOp& op, const KvLayerCuda& layer, const RopeKvArgs& args) {
  const std::uint32_t num_rows = args.num_heads + 2 * layer.num_kv_heads;
  const std::uint32_t threads_of_head = layer.head_dim / (2 * kPack);
  if (args.num_tokens == 0 || num_rows == 0 || threads_of_head == 0) return;
  if (is_plain(layer, args)) {
    const LaunchShape shape = shape_for(args.num_tokens, num_rows * threads_of_head, kMaxThreads);
    const PlainArgs plain{args.qkv, args.cos_sin, args.slot_mapping, args.num_heads};
    return launch(op, rope_kv_kernel<Element, Kv>, shape, layer, plain);
  }
  const bool changes_queries =
      args.cos_sin != nullptr || args.q_norm.normalise || args.query_beta != 0.0F;
  const Heads heads{changes_queries ? 0 : args.num_heads, std::bit_ceil(threads_of_head)};
  const std::uint32_t rows = num_rows - heads.first;
  if (rows == 0) return;
  const LaunchShape shape = shape_for(args.num_tokens, rows * heads.lanes, kMaxAnyThreads);
  launch(op, any_rope_kv_kernel<Element, Kv>, shape, layer, args, heads);
}

}  // namespace

void rope_kv_cuda(const CudaOp& op, const KvLayerCuda& layer, const RopeKvArgs& args) {
  check_rope_kv(layer, args);
  with_element(layer.dtype, [&](auto element) {
    using Element = decltype(element);
    layer.fp8 ? launch_rope_kv<Element, E4m3>(op, layer, args)
              : launch_rope_kv<Element, Element>(op, layer, args);
  });
}

}  // namespace inferno::ops::cuda
