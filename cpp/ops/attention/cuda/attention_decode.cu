// One query token per sequence: K and V are read once at the memory's pace.
//
// A block takes a share of the positions of one sequence and up to 8 query heads of one KV head;
// its warps take tiles of 16 positions in turn (attention_decode_tile.cuh). What the warps found is
// added up in shared memory, what the blocks found by the one that comes last.
#include <algorithm>
#include <cmath>

#include "ops/attention/cuda/attention_decode.h"
#include "ops/attention/cuda/attention_decode_tile.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kMaxSplits = 64;     // blocks that share a sequence's positions
constexpr std::uint32_t kMaxPartials = 512;  // blocks that may leave partial results
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

// What a warp has found for each head.
template <int kHeadDim>
struct WarpResult {
  float sums[kDecodeHeads][kHeadDim + 4];  // 2 heads are 8 banks apart
  float maximum[kDecodeHeads];
  float total[kDecodeHeads];
};

template <typename Element, int kHeadDim, int kStages, bool kTurned>
union WarpShared {
  DecodeStage<Element, kHeadDim, kTurned> ring[kStages];
  WarpResult<kHeadDim> result;  // when the ring has been used
};

template <typename Element, int kHeadDim, bool kPlain>
__device__ void leave_result(const DecodeSums<Element, kHeadDim, kPlain>& found,
                             std::uint32_t num_heads, WarpResult<kHeadDim>& result) {
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
      result.sums[head][m * 16 + lane / 4] = found.sums[m][h];
      result.sums[head][m * 16 + 8 + lane / 4] = found.sums[m][h + 2];
    }
  }
}

template <typename Element, int kHeadDim>
__device__ void store_out(const DecodeParams& p, const DecodeTask& task, std::uint32_t pair,
                          float2 value) {
  auto* out = static_cast<std::uint32_t*>(p.out);
  const std::size_t row = std::size_t{task.row} * p.num_heads + task.first_head;
  out[row * (kHeadDim / 2) + pair] = pack_pair<Element>(value.x, value.y);
}

template <int kHeadDim>
struct Partial {
  float sums[kDecodeHeads][kHeadDim];
  float maximum[kDecodeHeads];
  float total[kDecodeHeads];
};

// True in all threads of the block that comes last of the unit's blocks; it sees what all left.
__device__ bool arrives_last(std::uint32_t* arrivals, std::uint32_t num_blocks) {
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
template <typename Element, int kHeadDim, bool kSplit, int kStages, bool kTurned, int kWarps>
__device__ void finish(const DecodeParams& p, const DecodeTask& task,
                       const WarpShared<Element, kHeadDim, kStages, kTurned> (&warps)[kWarps]) {
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
template <int kHeadDim, bool kSplit>
constexpr bool kTurnedRows = !kSplit && kHeadDim % 64 == 0;

// Grid: [shares, KV heads * units of each, sequences].
template <typename Element, int kHeadDim, int kWarps, int kStages, bool kSplit, bool kPlain>
__global__ void __launch_bounds__(kWarps * 32)
    attention_decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ uint4 dynamic_shared[];
  constexpr bool kTurned = kTurnedRows<kHeadDim, kSplit>;
  using Warps = WarpShared<Element, kHeadDim, kStages, kTurned>[kWarps];
  auto& warps = *reinterpret_cast<Warps*>(dynamic_shared);
  auto& own = warps[threadIdx.x / 32];
  let_next_start();
  const DecodeTask task = decode_task<kHeadDim, kSplit, kPlain>(p);
  // A share that is not wanted ends at once; share 0 of each sequence waits for all.
  if (blockIdx.x > 0 && task.begin == task.end) return;
  DecodeTiles<Element, kHeadDim, kWarps, kStages, kTurned> tiles(p, task, own.ring);
  wait_for_previous();
  if (task.context_len == 0) {
    for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
      store_out<Element, kHeadDim>(p, task, i, make_float2(0.0F, 0.0F));
    }
    return;
  }
  tiles.start();
  DecodeSums<Element, kHeadDim, kPlain> sums;
  const std::size_t row = std::size_t{task.row} * (p.num_heads + 2 * p.num_kv_heads);
  sums.start(static_cast<const Element*>(p.qkv) + (row + task.first_head) * kHeadDim,
             task.num_heads);
  if (p.rule.has_sinks<kPlain>() && blockIdx.x == 0 && threadIdx.x < 32) {
    sums.add_sinks(p.rule.sinks + task.first_head, task.num_heads);
  }
  for (; !tiles.done(); tiles.advance()) {
    const auto& stage = tiles.wait();
    sums.add(stage, tiles.seen(), p.rule);
  }
  leave_result(sums, task.num_heads, own.result);
  __syncthreads();
  finish<Element, kHeadDim, kSplit>(p, task, warps);
}

template <typename Element, int kHeadDim, int kWarps, bool kSplit, int kStages = 2>
constexpr std::uint32_t kSharedBytes =
    kWarps * sizeof(WarpShared<Element, kHeadDim, kStages, kTurnedRows<kHeadDim, kSplit>>);

template <typename Element, int kHeadDim, int kWarps, bool kSplit, bool kPlain, int kStages = 2>
void launch_decode(const CudaOp& op, const DecodeParams& params, dim3 grid) {
  const auto kernel = attention_decode_kernel<Element, kHeadDim, kWarps, kStages, kSplit, kPlain>;
  constexpr std::uint32_t kBytes = kSharedBytes<Element, kHeadDim, kWarps, kSplit, kStages>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  launch(op, kernel, {grid, kWarps * 32, kBytes}, params);
}

std::uint32_t max_shared_bytes() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::uint32_t>(bytes);
}

template <typename Element, int kHeadDim, bool kPlain>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  const std::uint32_t units = params.num_kv_heads * params.units_per_kv_head;
  constexpr int kFewWarps = kHeadDim > 128 ? 2 : 4;
  constexpr int kManyWarps = 2 * kFewWarps;
  // Enough blocks: small ones, of which several fit into a multiprocessor and hide each other's
  // beginning and end. Few: large ones, and sequences cut into shares.
  const std::uint32_t slots = std::min(op.num_sms, kMaxPartials) / (units * num_decodes);
  if (slots == 0) {
    const dim3 grid(1, units, num_decodes);
    if constexpr (!kPlain && kHeadDim <= 64) {
      // A window of 128 positions is nine tiles: as much time goes into a block's beginning and end
      // as into those. The less memory it takes, the more others hide it.
      constexpr std::uint32_t kAtOnce = 8;  // blocks of a multiprocessor
      if (units * num_decodes > kAtOnce * op.num_sms) {
        return launch_decode<Element, kHeadDim, 3, false, kPlain, 2>(op, params, grid);
      }
      return launch_decode<Element, kHeadDim, 5, false, kPlain, 1>(op, params, grid);
    }
    return launch_decode<Element, kHeadDim, kFewWarps, false, kPlain>(op, params, grid);
  }
  const dim3 grid(std::min(slots, kMaxSplits), units, num_decodes);
  // Less than this only before sm_90, but for sm_80.
  constexpr std::uint32_t kGatherBytes = 8 * 1024;
  if (kSharedBytes<Element, kHeadDim, kManyWarps, true> + kGatherBytes > max_shared_bytes()) {
    return launch_decode<Element, kHeadDim, kFewWarps, true, kPlain>(op, params, grid);
  }
  launch_decode<Element, kHeadDim, kManyWarps, true, kPlain>(op, params, grid);
}

template <typename Element, int kHeadDim>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  params.rule.is_plain() ? launch_decode<Element, kHeadDim, true>(op, params, num_decodes)
                         : launch_decode<Element, kHeadDim, false>(op, params, num_decodes);
}

template <typename Element>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes,
                   std::uint32_t head_dim) {
  switch (head_dim) {
    case 32:
      return launch_decode<Element, 32>(op, params, num_decodes);
    case 64:
      return launch_decode<Element, 64>(op, params, num_decodes);
    case 96:
      return launch_decode<Element, 96>(op, params, num_decodes);
    case 128:
      return launch_decode<Element, 128>(op, params, num_decodes);
    default:
      return launch_decode<Element, 256>(op, params, num_decodes);
  }
}

constexpr std::size_t kArrivalBytes = kMaxPartials * sizeof(std::uint32_t);

}  // namespace

std::size_t attention_decode_workspace_bytes(std::uint32_t head_dim) {
  return kArrivalBytes + std::size_t{kMaxPartials} * kDecodeHeads * (head_dim + 2) * sizeof(float);
}

void attention_decode(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args) {
  const std::uint32_t group = args.num_heads / layer.num_kv_heads;
  auto* workspace = static_cast<std::byte*>(args.workspace);
  const DecodeParams params{
      .qkv = args.qkv,
      .k = layer.k,
      .v = layer.v,
      .out = args.out,
      .cu_query_lens = args.cu_query_lens,
      .context_lens = args.context_lens,
      .block_tables = args.block_tables,
      .decode_seqs = args.decode_seqs,
      .block_table_stride = args.block_table_stride,
      .block_size = layer.block_size,
      .num_heads = args.num_heads,
      .num_kv_heads = layer.num_kv_heads,
      .units_per_kv_head = (group + kDecodeHeads - 1) / kDecodeHeads,
      .rule = score_rule(args.rule),
      .arrivals = reinterpret_cast<std::uint32_t*>(workspace),
      .partials = reinterpret_cast<float*>(workspace + kArrivalBytes),
  };
  if (layer.dtype == Dtype::BF16) {
    launch_decode<__nv_bfloat16>(op, params, args.num_decodes, layer.head_dim);
  } else {
    launch_decode<__half>(op, params, args.num_decodes, layer.head_dim);
  }
}

}  // namespace inferno::ops::cuda
