// The kernel of attention_decode, for keys and values of elements and of e4m3.
//
// A block takes a share of the positions of one sequence and up to 8 query heads of one KV head;
// its warps take tiles of 16 positions in turn (attention_decode_tile.cuh). What the warps found is
// added up in shared memory, what the blocks found by the one that comes last.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/attention/cuda/attention_decode_tile.cuh"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kMaxSplits = 64;     // blocks that share a sequence's positions
inline constexpr std::uint32_t kMaxPartials = 512;  // blocks that may leave partial results
// How many blocks are worth having for so many tiles: beyond that, leaving and gathering partial
// results costs more.
template <int kHeadDim>
__device__ std::uint32_t useful_shares(std::uint32_t num_tiles) {
  const std::uint32_t large = (num_tiles + 15) / 16;
  if constexpr (kHeadDim <= 128) return large;
  return max(large, min((num_tiles + 3) / 4, 16));
}

template <int kHeadDim, bool kSplit, bool kPlain>
__device__ DecodeTask decode_task(const DecodeParams& p) {
  DecodeTask task;
  const std::uint32_t seq = p.decode_seqs[blockIdx.z];
  const std::uint32_t group = p.num_heads / p.num_kv_heads;
  const std::uint32_t head_in_group = blockIdx.y % p.units_per_kv_head * kDecodeHeads;
  task.context_len = p.context_lens[seq];
  task.row = p.cu_query_lens[seq];
  task.table = p.block_tables + std::size_t{seq} * p.block_table_stride;
  task.kv_head = blockIdx.y / p.units_per_kv_head;
  task.first_head = task.kv_head * group + head_in_group;
  task.num_heads = min(group - head_in_group, kDecodeHeads);
  task.first_seen = p.rule.first_seen<kPlain>(task.context_len);
  task.begin = task.first_seen / kDecodeTile;
  task.end = (task.context_len + kDecodeTile - 1) / kDecodeTile;
  task.num_shares = 1;
  if constexpr (kSplit) {
    const std::uint32_t num_tiles = task.end - task.begin;
    const std::uint32_t wanted = min(gridDim.x, useful_shares<kHeadDim>(num_tiles));
    const std::uint32_t share = wanted == 0 ? 1 : (num_tiles + wanted - 1) / wanted;
    task.num_shares = (num_tiles + share - 1) / share;
    task.begin = min(task.begin + blockIdx.x * share, task.end);
    task.end = min(task.begin + share, task.end);
  }
  return task;
}

// To the cache, by one of the blocks that have the KV head, where its row begins at `begin`, and
// into the tile that is multiplied.
template <typename Kv, typename Row, typename Stage>
__device__ void put_newest(const DecodeParams& p, const DecodeTask& task, const Row& newest,
                           Stage& stage, std::size_t begin) {
  using Pair = typename Row::Pair;
  Kv* const k = static_cast<Kv*>(p.k) + begin;
  Kv* const v = static_cast<Kv*>(p.v) + begin;
  const std::uint32_t row = task.newest() % kDecodeTile;
  const bool writes = blockIdx.y % p.units_per_kv_head == 0;
  newest.make(p.k_scale, p.v_scale, [&](std::uint32_t dim, Pair key, Pair value) {
    *reinterpret_cast<Pair*>(stage.k.at(row, dim)) = key;
    *reinterpret_cast<Pair*>(stage.v.at(row, dim)) = value;
    if (!writes) return;
    *reinterpret_cast<Pair*>(k + dim) = key;
    *reinterpret_cast<Pair*>(v + dim) = value;
  });
  __syncwarp();
}

// What a warp has found for each head.
template <int kHeadDim>
struct WarpResult {
  float sums[kDecodeHeads][kHeadDim + 4];  // 2 heads are 8 banks apart
  float maximum[kDecodeHeads];
  float total[kDecodeHeads];
};

template <typename Kv, int kHeadDim, int kStages, bool kTurned>
union WarpShared {
  DecodeStage<Kv, kHeadDim, kTurned> ring[kStages];
  WarpResult<kHeadDim> result;  // when the ring has been used
};

template <typename Sums, int kHeadDim>
__device__ void leave_result(const Sums& found, std::uint32_t num_heads,
                             WarpResult<kHeadDim>& result) {
  const std::uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = found.total[h];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffU, total, step);
    const std::uint32_t head = lane % 4 * 2 + h;
    if (head >= num_heads) continue;
    if (lane < 4) {
      result.maximum[head] = found.maximum[h];
      result.total[head] = total;
    }
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; ++m) {
      const auto [first, second] = Sums::dims_of(lane / 4);
      result.sums[head][m * 16 + first] = found.sums[m][h];
      result.sums[head][m * 16 + second] = found.sums[m][h + 2];
    }
  }
}

template <typename Element, int kHeadDim>
__device__ void store_out(const DecodeParams& p, const DecodeTask& task, std::uint32_t pair,
                          float2 value) {
  auto* out = static_cast<std::uint32_t*>(p.out);
  const std::size_t row = std::size_t{task.row} * p.num_heads + task.first_head;
  out[row * (kHeadDim / 2) + pair] = pack_pair<Element>(value.x * p.v_scale, value.y * p.v_scale);
}

template <int kHeadDim>
struct Partial {
  float sums[kDecodeHeads][kHeadDim];
  float maximum[kDecodeHeads];
  float total[kDecodeHeads];
};

// True in all threads of the block that comes last of the unit's blocks; it sees what all left.
__device__ inline bool arrives_last(std::uint32_t* arrivals, std::uint32_t num_blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrivals, 1) == num_blocks - 1;
    if (last) *arrivals = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// The block that comes last adds up the shares in their order.
template <typename Element, int kHeadDim, int kWarps>
__device__ void gather(const DecodeParams& p, const DecodeTask& task,
                       const Partial<kHeadDim>* partials) {
  __shared__ float maximum[kMaxSplits][kDecodeHeads];
  __shared__ float total[kMaxSplits][kDecodeHeads];
  for (std::uint32_t i = threadIdx.x; i < task.num_shares * kDecodeHeads; i += kWarps * 32) {
    if (i % kDecodeHeads >= task.num_heads) continue;
    maximum[i / kDecodeHeads][i % kDecodeHeads] =
        __ldcg(partials[i / kDecodeHeads].maximum + i % kDecodeHeads);
    total[i / kDecodeHeads][i % kDecodeHeads] =
        __ldcg(partials[i / kDecodeHeads].total + i % kDecodeHeads);
  }
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
    const std::uint32_t head = i / (kHeadDim / 2);
    float largest = -INFINITY;
    for (std::uint32_t s = 0; s < task.num_shares; ++s) largest = fmaxf(largest, maximum[s][head]);
    float2 sum = make_float2(0.0F, 0.0F);
    float weights = 0.0F;
#pragma unroll 8
    for (std::uint32_t s = 0; s < task.num_shares; ++s) {
      const float2 part = __ldcg(reinterpret_cast<const float2*>(partials[s].sums) + i);
      const float weight = exp2_fast(maximum[s][head] - largest);
      weights += weight * total[s][head];
      sum.x += weight * part.x;
      sum.y += weight * part.y;
    }
    store_out<Element, kHeadDim>(p, task, i, make_float2(sum.x / weights, sum.y / weights));
  }
}

// The warps' results become the block's: the answer, or a share of it.
template <typename Element, int kHeadDim, bool kSplit, typename Warp, int kWarps>
__device__ void finish(const DecodeParams& p, const DecodeTask& task, const Warp (&warps)[kWarps]) {
  const std::uint32_t unit = blockIdx.z * gridDim.y + blockIdx.y;
  auto* partials = reinterpret_cast<Partial<kHeadDim>*>(p.partials) + unit * gridDim.x;
  for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
    const std::uint32_t head = i / (kHeadDim / 2);
    const std::uint32_t dim = i % (kHeadDim / 2) * 2;
    float largest = -INFINITY;
#pragma unroll
    for (const auto& warp : warps) largest = fmaxf(largest, warp.result.maximum[head]);
    float2 sum = make_float2(0.0F, 0.0F);
    float weights = 0.0F;
#pragma unroll
    for (const auto& warp : warps) {
      const auto part = *reinterpret_cast<const float2*>(&warp.result.sums[head][dim]);
      const float weight = exp2_fast(warp.result.maximum[head] - largest);
      weights += weight * warp.result.total[head];
      sum.x += weight * part.x;
      sum.y += weight * part.y;
    }
    if (!kSplit || task.num_shares == 1) {
      store_out<Element, kHeadDim>(p, task, i, make_float2(sum.x / weights, sum.y / weights));
      continue;
    }
    reinterpret_cast<float2*>(partials[blockIdx.x].sums)[i] = sum;
    if (dim == 0) {
      partials[blockIdx.x].maximum[head] = largest;
      partials[blockIdx.x].total[head] = weights;
    }
  }
  if constexpr (kSplit) {
    if (task.num_shares == 1) return;
    if (!arrives_last(p.arrivals + unit, task.num_shares)) return;
    gather<Element, kHeadDim, kWarps>(p, task, partials);
  }
}

// Where many blocks share a multiprocessor they gain by less memory each. Where sequences are split
// there are few, and each has little to do.
template <typename Kv, int kHeadDim, bool kSplit>
constexpr bool kTurnedRows = !kSplit && kHeadDim * sizeof(Kv) % 128 == 0;

// What a kernel is made for. Kv: Element, or e4m3.
template <typename ElementOf, typename KvOf, int kHeadDimOf, bool kPlainOf>
struct DecodeKind {
  using Element = ElementOf;
  using Kv = KvOf;
  static constexpr int kHeadDim = kHeadDimOf;
  static constexpr bool kPlain = kPlainOf;
};

// Grid: [shares, KV heads * units of each, sequences].
template <typename Kind, int kWarps, int kStages, bool kSplit>
__global__ void __launch_bounds__(kWarps * 32)
    attention_decode_kernel(const __grid_constant__ DecodeParams p) {
  using Element = typename Kind::Element;
  using Kv = typename Kind::Kv;
  constexpr int kHeadDim = Kind::kHeadDim;
  constexpr bool kPlain = Kind::kPlain;
  extern __shared__ uint4 dynamic_shared[];
  constexpr bool kTurned = kTurnedRows<Kv, kHeadDim, kSplit>;
  using Warps = WarpShared<Kv, kHeadDim, kStages, kTurned>[kWarps];
  auto& warps = *reinterpret_cast<Warps*>(dynamic_shared);
  auto& own = warps[threadIdx.x / 32];
  let_next_start();
  const DecodeTask task = decode_task<kHeadDim, kSplit, kPlain>(p);
  // A share that is not wanted ends at once; share 0 of each sequence waits for all.
  if (blockIdx.x > 0 && task.begin == task.end) return;
  DecodeTiles<Kv, kHeadDim, kWarps, kStages, kTurned> tiles(p, task, own.ring);
  wait_for_previous();
  if (task.context_len == 0) {
    for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
      store_out<Element, kHeadDim>(p, task, i, make_float2(0.0F, 0.0F));
    }
    return;
  }
  tiles.start();
  const auto* heads = static_cast<const Element*>(p.qkv) +
                      std::size_t{task.row} * (p.num_heads + 2 * p.num_kv_heads) * kHeadDim;
  const float* cos_sin = p.makes_newest() ? p.cos_sin + task.row * kHeadDim : nullptr;
  NewestRow<Element, Kv, kHeadDim> newest;
  const bool makes_newest = p.makes_newest() && tiles.will_have_newest();
  if (makes_newest) {
    const Element* k = heads + (p.num_heads + task.kv_head) * kHeadDim;
    newest.load(k, k + p.num_kv_heads * kHeadDim, cos_sin);
  }
  DecodeSums<Element, Kv, kHeadDim, kPlain> sums;
  sums.start(heads + task.first_head * kHeadDim, task.num_heads, cos_sin);
  if (p.rule.has_sinks<kPlain>() && blockIdx.x == 0 && threadIdx.x < 32) {
    sums.add_sinks(p.rule.sinks + task.first_head, task.num_heads);
  }
  for (; !tiles.done(); tiles.advance()) {
    auto& stage = tiles.wait();
    if (makes_newest && tiles.has_newest()) {
      put_newest<Kv>(p, task, newest, stage, tiles.newest_row());
    }
    sums.add(stage, tiles.seen(), p.rule);
  }
  leave_result(sums, task.num_heads, own.result);
  __syncthreads();
  finish<Element, kHeadDim, kSplit>(p, task, warps);
}

template <typename Kind, int kWarps, bool kSplit, int kStages = 2>
constexpr std::uint32_t kSharedBytes =
    kWarps * sizeof(WarpShared<typename Kind::Kv, Kind::kHeadDim, kStages,
                               kTurnedRows<typename Kind::Kv, Kind::kHeadDim, kSplit>>);

template <typename Kind, int kWarps, bool kSplit, int kStages = 2>
void launch_decode(const CudaOp& op, const DecodeParams& params, dim3 grid) {
  const auto kernel = attention_decode_kernel<Kind, kWarps, kStages, kSplit>;
  constexpr std::uint32_t kBytes = kSharedBytes<Kind, kWarps, kSplit, kStages>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  launch(op, kernel, {grid, kWarps * 32, kBytes}, params);
}

// Blocks that share each sequence's positions; 0: there are enough without.
inline std::uint32_t shares_of(const CudaOp& op, const DecodeParams& params,
                               std::uint32_t num_decodes) {
  const std::uint32_t units = params.num_kv_heads * params.units_per_kv_head;
  return std::min(std::min(op.num_sms, kMaxPartials) / (units * num_decodes), kMaxSplits);
}

// The part of attention_decode for k and v in e4m3.
void attention_decode_fp8(const CudaOp& op, const KvLayerCuda& layer, const DecodeParams& params,
                          std::uint32_t num_decodes);

}  // namespace inferno::ops::cuda
