// One query token per sequence: K and V are read once at the memory's pace.
//
// A block takes a share of the positions of one sequence and up to 8 query heads of one KV head.
// Its warps take tiles of 16 positions in turn, straight from memory into the fragments of the
// tensor cores: Sᵀ = K · qᵀ (m = positions, n = heads), then Oᵀ += Vᵀ · Pᵀ (m = dims). Since the
// order of the summed dimension is free as long as both factors agree, each lane loads 16 bytes
// and uses them as they come; no shared memory stands between. The next tile's loads are on their
// way while a tile is computed.
#include <algorithm>
#include <cmath>

#include "ops/attention_decode.h"
#include "ops/attention_mma.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kTile = 16;          // positions of a warp's step
constexpr std::uint32_t kUnitHeads = 8;      // query heads of a block
constexpr std::uint32_t kMaxSplits = 64;     // blocks that share a sequence's positions
constexpr std::uint32_t kMaxPartials = 512;  // blocks that may leave partial results
// A share worth a block of its own: below it, leaving and gathering partial results costs more.
constexpr std::uint32_t kMinShare = 128 / kTile;

struct DecodeParams {
  const void* qkv;
  const void* k;
  const void* v;
  void* out;
  const std::uint32_t* cu_query_lens;
  const std::uint32_t* context_lens;
  const std::uint32_t* block_tables;
  const std::uint32_t* decode_seqs;
  std::uint32_t block_table_stride;
  std::uint32_t block_size;
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t units_per_kv_head;
  float scale_log2;
  std::uint32_t* arrivals;  // [kMaxPartials] 0 between kernels
  float* partials;          // [kMaxPartials, kUnitHeads, head_dim + 2]
};

// What a block computes: heads first_head … of the sequence's one token, over tiles [begin, end).
struct DecodeTask {
  std::uint32_t context_len;
  std::uint32_t begin;
  std::uint32_t end;
  std::uint32_t num_shares;
  std::uint32_t row;
  std::uint32_t kv_head;
  std::uint32_t first_head;
  std::uint32_t num_heads;
  const std::uint32_t* table;
};

__device__ DecodeTask decode_task(const DecodeParams& p) {
  DecodeTask task;
  const std::uint32_t seq = p.decode_seqs[blockIdx.z];
  const std::uint32_t group = p.num_heads / p.num_kv_heads;
  const std::uint32_t head_in_group = blockIdx.y % p.units_per_kv_head * kUnitHeads;
  task.context_len = p.context_lens[seq];
  task.row = p.cu_query_lens[seq];
  task.table = p.block_tables + std::size_t{seq} * p.block_table_stride;
  task.kv_head = blockIdx.y / p.units_per_kv_head;
  task.first_head = task.kv_head * group + head_in_group;
  task.num_heads = min(group - head_in_group, kUnitHeads);
  const std::uint32_t num_tiles = (task.context_len + kTile - 1) / kTile;
  const std::uint32_t wanted = min(gridDim.x, (num_tiles + kMinShare - 1) / kMinShare);
  const std::uint32_t share = wanted == 0 ? 1 : (num_tiles + wanted - 1) / wanted;
  task.num_shares = (num_tiles + share - 1) / share;
  task.begin = min(blockIdx.x * share, num_tiles);
  task.end = min(task.begin + share, num_tiles);
  return task;
}

__device__ __forceinline__ uint4 load_16(const void* address) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

__device__ __forceinline__ uint2 load_8(const void* address) {
  uint2 value;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "l"(address));
  return value;
}

// In all that follows lane = 4 * g + t, as the fragments of m16n8k16 are described.
template <typename Element, int kHeadDim>
struct Fragments {
  static constexpr int kChunks = kHeadDim / 32;                 // 4 lanes * 16 bytes of a key
  static constexpr int kLaneDims = kHeadDim % 64 == 0 ? 8 : 4;  // of a value, together
  static constexpr int kGroups = kHeadDim / (8 * kLaneDims);    // 8 lanes' dims of a value
  static constexpr int kWords = kLaneDims / 2;

  uint4 q[kChunks];                           // head g, dims 32 c + 8 t …
  uint4 k[2][kChunks];                        // positions g and g + 8, the same dims
  std::uint32_t v[4][kGroups][kWords];        // positions 2 t, + 1, + 8, + 9; dims of lane g
  float sums[kHeadDim / 16][4];               // dims of lane g by twos, heads 2 t and 2 t + 1
  float maximum[2] = {-INFINITY, -INFINITY};  // of heads 2 t and 2 t + 1, in units of log 2
  float total[2] = {0.0F, 0.0F};              // this lane's part

  __device__ Fragments() {
#pragma unroll
    for (auto& sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0.0F;
  }

  __device__ void load_q(const Element* heads, std::uint32_t num_heads, std::uint32_t lane) {
    const std::uint32_t g = lane / 4;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      q[c] = make_uint4(0, 0, 0, 0);
      if (g < num_heads) q[c] = load_16(heads + g * kHeadDim + c * 32 + lane % 4 * 8);
    }
  }

  // Positions from num_valid on, which may hold anything, count as zeros.
  __device__ void load_k(const Element* tile, std::uint32_t num_valid, std::uint32_t lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t position = lane / 4 + half * 8;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        k[half][c] = make_uint4(0, 0, 0, 0);
        if (position < num_valid) {
          k[half][c] = load_16(tile + position * kHeadDim + c * 32 + lane % 4 * 8);
        }
      }
    }
  }

  __device__ void load_v(const Element* tile, std::uint32_t num_valid, std::uint32_t lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t position = lane % 4 * 2 + i % 2 + i / 2 * 8;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const Element* source = tile + position * kHeadDim + (j * 8 + lane / 4) * kLaneDims;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (position < num_valid) {
          if constexpr (kWords == 4) {
            value = load_16(source);
          } else {
            const uint2 pair = load_8(source);
            value.x = pair.x;
            value.y = pair.y;
          }
        }
        v[i][j][0] = value.x;
        v[i][j][1] = value.y;
        if constexpr (kWords == 4) {
          v[i][j][2] = value.z;
          v[i][j][3] = value.w;
        }
      }
    }
  }

  // scores: positions g (0, 1) and g + 8 (2, 3), heads 2 t and 2 t + 1.
  __device__ void multiply_k(float (&scores)[4]) const {
    scores[0] = scores[1] = scores[2] = scores[3] = 0.0F;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const std::uint32_t low[4] = {k[0][c].x, k[1][c].x, k[0][c].y, k[1][c].y};
      const std::uint32_t high[4] = {k[0][c].z, k[1][c].z, k[0][c].w, k[1][c].w};
      mma_16816<Element>(scores, low, q[c].x, q[c].y);
      mma_16816<Element>(scores, high, q[c].z, q[c].w);
    }
  }

  // Scores become weights against the new maximum; what was summed before is rescaled.
  __device__ void softmax(float (&scores)[4], std::uint32_t num_valid, std::uint32_t lane,
                          float scale_log2) {
    float rescale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scores[h] = lane / 4 < num_valid ? scores[h] * scale_log2 : -INFINITY;
      scores[h + 2] = lane / 4 + 8 < num_valid ? scores[h + 2] * scale_log2 : -INFINITY;
      float largest = fmaxf(maximum[h], fmaxf(scores[h], scores[h + 2]));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, step));
      }
      rescale[h] = exp2_fast(maximum[h] - largest);
      maximum[h] = largest;
      scores[h] = exp2_fast(scores[h] - largest);
      scores[h + 2] = exp2_fast(scores[h + 2] - largest);
      total[h] = total[h] * rescale[h] + scores[h] + scores[h + 2];
    }
#pragma unroll
    for (auto& sum : sums) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] *= rescale[i % 2];
    }
  }

  __device__ void multiply_v(const float (&weights)[4]) {
    std::uint32_t b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pair = pack_pair<Element>(weights[2 * half], weights[2 * half + 1]);
      asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(b[half]) : "r"(pair));
    }
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const std::uint32_t a[4] = {__byte_perm(v[0][j][w], v[1][j][w], 0x5410),
                                    __byte_perm(v[0][j][w], v[1][j][w], 0x7632),
                                    __byte_perm(v[2][j][w], v[3][j][w], 0x5410),
                                    __byte_perm(v[2][j][w], v[3][j][w], 0x7632)};
        mma_16816<Element>(sums[j * kWords + w], a, b[0], b[1]);
      }
    }
  }
};

// A warp's tiles of the share: where they lie and how many positions count.
template <typename Element, int kHeadDim, int kWarps>
class TileWalk {
 public:
  __device__ TileWalk(const DecodeParams& p, const DecodeTask& task)
      : k_(static_cast<const Element*>(p.k)),
        v_(static_cast<const Element*>(p.v)),
        table_(task.table),
        context_len_(task.context_len),
        end_(task.end),
        tile_(task.begin + threadIdx.x / 32),
        tiles_per_block_(p.block_size / kTile),
        kv_head_(task.kv_head),
        num_kv_heads_(p.num_kv_heads) {
    look_up();
    for (std::uint32_t i = 0; i < kAhead; ++i) prefetch(i);
  }

  __device__ bool done() const { return tile_ >= end_; }
  __device__ std::uint32_t num_valid() const { return min(context_len_ - tile_ * kTile, kTile); }
  __device__ const Element* k() const { return k_ + offset(0); }
  __device__ const Element* v() const { return v_ + offset(0); }

  __device__ void advance() {
    tile_ += kWarps;
    if (++step_ == 32 - kAhead) look_up();
    prefetch(kAhead - 1);
  }

 private:
  // Tiles that are on their way into the L2. It is where all writes meet, so that may begin before
  // the previous kernel has ended.
  static constexpr std::uint32_t kAhead = 4;

  // Lane i keeps the block id of the warp's tile i from here.
  __device__ void look_up() {
    const std::uint32_t tile = tile_ + threadIdx.x % 32 * kWarps;
    ids_ = tile < end_ ? table_[tile / tiles_per_block_] : 0;
    step_ = 0;
  }

  // In elements, the same for keys and values.
  __device__ std::size_t offset(std::uint32_t ahead) const {
    const std::uint32_t id = __shfl_sync(0xffffffffU, ids_, step_ + ahead);
    const std::uint32_t tile = tile_ + ahead * kWarps;
    return ((std::size_t{id} * num_kv_heads_ + kv_head_) * tiles_per_block_ +
            tile % tiles_per_block_) *
           (kTile * kHeadDim);
  }

  __device__ void prefetch(std::uint32_t ahead) const {
    if (tile_ + ahead * kWarps >= end_) return;
    constexpr std::uint32_t kLineElements = 128 / sizeof(Element);
    const std::size_t begin = offset(ahead);
    for (std::uint32_t i = threadIdx.x % 32 * kLineElements; i < kTile * kHeadDim;
         i += 32 * kLineElements) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(k_ + begin + i));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(v_ + begin + i));
    }
  }

  const Element* k_;
  const Element* v_;
  const std::uint32_t* table_;
  std::uint32_t context_len_;
  std::uint32_t end_;
  std::uint32_t tile_;
  std::uint32_t tiles_per_block_;
  std::uint32_t kv_head_;
  std::uint32_t num_kv_heads_;
  std::uint32_t step_;
  std::uint32_t ids_;
};

// What the warps of a block, or the blocks of a sequence, have found for each head.
template <int kHeadDim, int kWarps>
struct WarpResults {
  static constexpr int kStride = kHeadDim + 4;  // spreads the heads over the banks
  alignas(16) float sums[kWarps][kUnitHeads][kStride];
  float maximum[kWarps][kUnitHeads];
  float total[kWarps][kUnitHeads];
};

template <typename Element, int kHeadDim, int kWarps>
__device__ void leave_result(Fragments<Element, kHeadDim>& f, std::uint32_t num_heads,
                             WarpResults<kHeadDim, kWarps>& results) {
  using F = Fragments<Element, kHeadDim>;
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t warp = threadIdx.x / 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = f.total[h];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffU, total, step);
    const std::uint32_t head = lane % 4 * 2 + h;
    if (head >= num_heads) continue;
    if (lane < 4) {
      results.maximum[warp][head] = f.maximum[h];
      results.total[warp][head] = total;
    }
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; m += 2) {
      const int dim =
          (m / F::kWords * 8 + static_cast<int>(lane / 4)) * F::kLaneDims + m % F::kWords * 2;
      *reinterpret_cast<float4*>(&results.sums[warp][head][dim]) =
          make_float4(f.sums[m][h], f.sums[m][h + 2], f.sums[m + 1][h], f.sums[m + 1][h + 2]);
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
  float sums[kUnitHeads][kHeadDim];
  float maximum[kUnitHeads];
  float total[kUnitHeads];
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
  __shared__ float maximum[kMaxSplits][kUnitHeads];
  __shared__ float total[kMaxSplits][kUnitHeads];
  for (std::uint32_t i = threadIdx.x; i < task.num_shares * kUnitHeads; i += kWarps * 32) {
    if (i % kUnitHeads >= task.num_heads) continue;
    maximum[i / kUnitHeads][i % kUnitHeads] =
        __ldcg(partials[i / kUnitHeads].maximum + i % kUnitHeads);
    total[i / kUnitHeads][i % kUnitHeads] = __ldcg(partials[i / kUnitHeads].total + i % kUnitHeads);
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
template <typename Element, int kHeadDim, int kWarps>
__device__ void finish(const DecodeParams& p, const DecodeTask& task,
                       const WarpResults<kHeadDim, kWarps>& results) {
  const std::uint32_t unit = blockIdx.z * gridDim.y + blockIdx.y;
  auto* partials = reinterpret_cast<Partial<kHeadDim>*>(p.partials) + unit * gridDim.x;
  for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
    const std::uint32_t head = i / (kHeadDim / 2);
    const std::uint32_t dim = i % (kHeadDim / 2) * 2;
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, results.maximum[w][head]);
    float2 sum = make_float2(0.0F, 0.0F);
    float weights = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const auto part = *reinterpret_cast<const float2*>(&results.sums[w][head][dim]);
      const float weight = exp2_fast(results.maximum[w][head] - largest);
      weights += weight * results.total[w][head];
      sum.x += weight * part.x;
      sum.y += weight * part.y;
    }
    if (task.num_shares == 1) {
      store_out<Element, kHeadDim>(p, task, i, make_float2(sum.x / weights, sum.y / weights));
      continue;
    }
    reinterpret_cast<float2*>(partials[blockIdx.x].sums)[i] = sum;
    if (dim == 0) {
      partials[blockIdx.x].maximum[head] = largest;
      partials[blockIdx.x].total[head] = weights;
    }
  }
  if (task.num_shares == 1) return;
  if (!arrives_last(p.arrivals + unit, task.num_shares)) return;
  gather<Element, kHeadDim, kWarps>(p, task, partials);
}

// Grid: [shares, KV heads * units of each, sequences].
template <typename Element, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    attention_decode_kernel(const __grid_constant__ DecodeParams p) {
  __shared__ WarpResults<kHeadDim, kWarps> results;
  let_next_start();
  const DecodeTask task = decode_task(p);
  // A share that is not wanted ends at once; share 0 of each sequence waits for all.
  if (blockIdx.x > 0 && task.begin == task.end) return;
  TileWalk<Element, kHeadDim, kWarps> walk(p, task);
  wait_for_previous();
  if (task.context_len == 0) {
    for (std::uint32_t i = threadIdx.x; i < task.num_heads * (kHeadDim / 2); i += kWarps * 32) {
      store_out<Element, kHeadDim>(p, task, i, make_float2(0.0F, 0.0F));
    }
    return;
  }
  const std::uint32_t lane = threadIdx.x % 32;
  Fragments<Element, kHeadDim> f;
  if (!walk.done()) {
    const std::size_t row = std::size_t{task.row} * (p.num_heads + 2 * p.num_kv_heads);
    f.load_q(static_cast<const Element*>(p.qkv) + (row + task.first_head) * kHeadDim,
             task.num_heads, lane);
    f.load_k(walk.k(), walk.num_valid(), lane);
    f.load_v(walk.v(), walk.num_valid(), lane);
  }
  while (!walk.done()) {
    const std::uint32_t num_valid = walk.num_valid();
    walk.advance();
    float scores[4];
    f.multiply_k(scores);
    if (!walk.done()) f.load_k(walk.k(), walk.num_valid(), lane);
    f.softmax(scores, num_valid, lane, p.scale_log2);
    f.multiply_v(scores);
    if (!walk.done()) f.load_v(walk.v(), walk.num_valid(), lane);
  }
  leave_result<Element, kHeadDim, kWarps>(f, task.num_heads, results);
  __syncthreads();
  finish<Element, kHeadDim, kWarps>(p, task, results);
}

template <typename Element, int kHeadDim>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  const std::uint32_t units = params.num_kv_heads * params.units_per_kv_head;
  // Few blocks: many warps in each, and sequences cut into shares. Enough blocks: small ones, of
  // which several fit into a multiprocessor and hide each other's beginning and end.
  const bool few = units * num_decodes <= op.num_sms;
  const std::uint32_t slots = std::min(op.num_sms, kMaxPartials);
  const std::uint32_t shares =
      std::clamp(slots / std::max(units * num_decodes, 1U), 1U, kMaxSplits);
  constexpr int kManyWarps = kHeadDim > 128 ? 4 : 8;
  const dim3 grid(shares, units, num_decodes);
  if (few) {
    launch(op, attention_decode_kernel<Element, kHeadDim, kManyWarps>, {grid, kManyWarps * 32},
           params);
  } else {
    launch(op, attention_decode_kernel<Element, kHeadDim, 4>, {grid, 4 * 32}, params);
  }
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
  return kArrivalBytes + std::size_t{kMaxPartials} * kUnitHeads * (head_dim + 2) * sizeof(float);
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
      .units_per_kv_head = (group + kUnitHeads - 1) / kUnitHeads,
      .scale_log2 = args.scale * kLog2E,
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
