// A warp's work in attention_decode: tiles of 16 positions, through the warp's own ring in shared
// memory to the tensor cores. Lane = 4 * g + t, as the fragments of m16n8k16 are described.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "ops/attention/cuda/attention_decode_newest.cuh"
#include "ops/attention/cuda/attention_score.cuh"
#include "ops/cuda/e4m3.cuh"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kDecodeTile = 16;  // positions of a warp's step: the m of a product
inline constexpr std::uint32_t kDecodeHeads = 8;  // query heads of a block: the n

struct DecodeParams {
  const void* qkv;
  const float* cos_sin;  // [T, 2, head_dim / 2], or null: q is turned, k and v are in the cache
  void* k;
  void* v;
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
  ScoreRule rule;
  float k_scale;            // of a new key
  float v_scale;            // of the output and of a new value
  std::uint32_t* arrivals;  // [kMaxPartials] 0 between kernels
  float* partials;          // [kMaxPartials, kDecodeHeads, head_dim + 2]

  // Whether the newest position's key and value are not in the cache yet.
  __device__ bool makes_newest() const { return cos_sin != nullptr; }
};

// What a block computes: heads first_head … of the sequence's one token, over tiles [begin, end).
struct DecodeTask {
  std::uint32_t context_len;
  std::uint32_t first_seen;  // position
  std::uint32_t begin;
  std::uint32_t end;
  std::uint32_t num_shares;
  std::uint32_t row;
  std::uint32_t kv_head;
  std::uint32_t first_head;
  std::uint32_t num_heads;
  const std::uint32_t* table;

  __device__ std::uint32_t newest() const { return context_len - 1; }
};

// A tile's keys or values. ldmatrix reads the same 16 bytes of eight rows in one go: turned, chunk
// c of row r lies at c ^ (r % 8), which takes whole numbers of 128 bytes a row and less memory;
// else rows begin 4 banks apart, which is sooner done.
template <typename Kv, int kHeadDim, bool kTurned>
class DecodeRows {
  static constexpr int kChunk = 16 / sizeof(Kv);

 public:
  __device__ const Kv* chunk(std::uint32_t row, std::uint32_t chunk) const {
    return &rows_[row][(kTurned ? chunk ^ row % 8 : chunk) * kChunk];
  }
  __device__ Kv* chunk(std::uint32_t row, std::uint32_t chunk) {
    return &rows_[row][(kTurned ? chunk ^ row % 8 : chunk) * kChunk];
  }
  __device__ Kv* at(std::uint32_t row, std::uint32_t dim) {
    return chunk(row, dim / kChunk) + dim % kChunk;
  }

 private:
  static_assert(!kTurned || kHeadDim * sizeof(Kv) % 128 == 0);
  alignas(16) Kv rows_[kDecodeTile][kTurned ? kHeadDim : kHeadDim + kChunk];
};

template <typename Kv, int kHeadDim, bool kTurned>
struct DecodeStage {
  DecodeRows<Kv, kHeadDim, kTurned> k;
  DecodeRows<Kv, kHeadDim, kTurned> v;
};

// A warp's tiles of the share, every kWarps-th, and the ring that they pass through.
template <typename Kv, int kHeadDim, int kWarps, int kStages, bool kTurned>
class DecodeTiles {
 public:
  using Stage = DecodeStage<Kv, kHeadDim, kTurned>;

  __device__ DecodeTiles(const DecodeParams& p, const DecodeTask& task, Stage* ring)
      : p_(p), task_(task), ring_(ring), tile_(task.begin + threadIdx.x / 32) {
    look_up();
    start_early();
  }

  // The rest of the first copies; the previous kernel must have ended.
  __device__ void start() {
#pragma unroll
    for (std::uint32_t i = 0; i < kStages; ++i) {
      if (i >= num_early_) copy(i);
    }
  }

  __device__ bool done() const { return tile_ >= task_.end; }
  __device__ SeenInTile seen() const { return seen(tile_); }

  // The tile, when it has come.
  __device__ Stage& wait() const {
    wait_for_copies<kStages - 1>();
    __syncwarp();
    return ring_[step_ % kStages];
  }

  // Whether one of the warp's tiles from here has the newest position; whether this one has.
  __device__ bool will_have_newest() const {
    const std::uint32_t tile = task_.newest() / kDecodeTile;
    return tile >= tile_ && tile < task_.end && (tile - tile_) % kWarps == 0;
  }
  __device__ bool has_newest() const { return tile_ == task_.newest() / kDecodeTile; }

  // Where its row begins in k and v, of the tile that has it.
  __device__ std::size_t newest_row() const {
    const std::uint32_t id = __shfl_sync(0xffffffffU, ids_, step_ % kLookUp);
    return offset(tile_, id) + task_.newest() % kDecodeTile * kHeadDim;
  }

  __device__ void advance() {
    __syncwarp();  // all lanes have read the stage
    copy(kStages);
    tile_ += kWarps;
    if (++step_ % kLookUp == 0) look_up();
  }

 private:
  static constexpr std::uint32_t kLookUp = 24;  // steps; a multiple of kStages
  static_assert(kLookUp % kStages == 0 && kLookUp + kStages < 32);

  // Lane i keeps the block id of the warp's tile i from here.
  __device__ void look_up() {
    const std::uint32_t tile = tile_ + threadIdx.x % 32 * kWarps;
    const std::uint32_t place = tile / (p_.block_size / kDecodeTile);
    // Not held against the context's end: its length may still be on its way.
    ids_ = place < p_.block_table_stride ? task_.table[place] : 0;
  }

  __device__ SeenInTile seen(std::uint32_t tile) const {
    const std::uint32_t begin = tile * kDecodeTile;
    return {.first = task_.first_seen > begin ? task_.first_seen - begin : 0,
            .end = task_.context_len - begin};
  }

  // In elements, the same for keys and values.
  __device__ std::size_t offset(std::uint32_t tile, std::uint32_t id) const {
    const std::uint32_t tiles_per_block = p_.block_size / kDecodeTile;
    return ((std::size_t{id} * p_.num_kv_heads + task_.kv_head) * tiles_per_block +
            tile % tiles_per_block) *
           (kDecodeTile * kHeadDim);
  }

  // Copies that need not wait for the previous kernel: a step writes nothing before a sequence's
  // newest position, and steps do not overlap.
  __device__ void start_early() {
#pragma unroll
    for (std::uint32_t i = 0; i < kStages; ++i) {
      const std::uint32_t tile = tile_ + i * kWarps;
      if (tile >= task_.end) break;
      // The newest position, unless it comes from elsewhere.
      if (!p_.makes_newest() && (tile + 1) * kDecodeTile >= task_.context_len) break;
      copy(i);
      num_early_ = i + 1;
    }
    if (num_early_ == 0) prefetch();
  }

  // The newest positions' tile, into the L2: that is where all writes meet, so it may come before
  // the previous kernel has ended.
  __device__ void prefetch() const {
    if (tile_ >= task_.end) return;
    constexpr std::uint32_t kLine = 128 / sizeof(Kv);
    const std::size_t begin = offset(tile_, __shfl_sync(0xffffffffU, ids_, 0));
    for (std::uint32_t i = seen().first * kHeadDim + threadIdx.x % 32 * kLine;
         i < kDecodeTile * kHeadDim; i += 32 * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const Kv*>(p_.k) + begin + i));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const Kv*>(p_.v) + begin + i));
    }
  }

  // Starts the copy of the tile that comes `ahead` steps later. Positions that are not seen, where
  // anything may lie, become zeros, and the newest one where it is still to be made.
  __device__ void copy(std::uint32_t ahead) {
    const std::uint32_t tile = tile_ + ahead * kWarps;
    const std::uint32_t id = __shfl_sync(0xffffffffU, ids_, step_ % kLookUp + ahead);
    if (tile < task_.end) {
      constexpr std::uint32_t kChunk = 16 / sizeof(Kv);
      constexpr std::uint32_t kChunks = kHeadDim / kChunk;
      const std::size_t begin = offset(tile, id);
      const auto* k = static_cast<const Kv*>(p_.k) + begin;
      const auto* v = static_cast<const Kv*>(p_.v) + begin;
      SeenInTile seen = this->seen(tile);
      seen.end -= p_.makes_newest() ? 1 : 0;
      Stage& stage = ring_[(step_ + ahead) % kStages];
#pragma unroll
      for (std::uint32_t i = 0; i < kDecodeTile * kChunks; i += 32) {
        const std::uint32_t chunk = i + threadIdx.x % 32;
        const std::uint32_t position = chunk / kChunks;
        copy_16(stage.k.chunk(position, chunk % kChunks), k + chunk * kChunk, seen(position));
        copy_16(stage.v.chunk(position, chunk % kChunks), v + chunk * kChunk, seen(position));
      }
    }
    commit_copies();
  }

  const DecodeParams& p_;
  const DecodeTask& task_;
  Stage* ring_;
  std::uint32_t tile_;
  std::uint32_t step_ = 0;
  std::uint32_t num_early_ = 0;
  std::uint32_t ids_;
};

// Sᵀ = K · qᵀ (m = positions, n = heads) and Oᵀ += Vᵀ · Pᵀ (m = dims), with the running softmax.
//
// Of e4m3 a word that ldmatrix gives has four dims of a position (of V two of two positions). Those
// in its lower bytes are one pair of elements, those in the upper bytes another; so among the 16
// dims of a step they stand in an order of their own, in which q is read and sums are left.
template <typename Element, typename Kv, int kHeadDim, bool kPlain>
struct DecodeSums {
  static constexpr bool kFp8 = std::is_same_v<Kv, E4m3>;

  // Head g, dims 16 s + 2 t, + 1, + 8, + 9; of e4m3 16 s + 4 t, + 2, + 1, + 3.
  std::uint32_t q[kHeadDim / 16][2];
  float sums[kHeadDim / 16][4];               // dims 16 m + dims_of(g), heads 2 t and 2 t + 1
  float maximum[2] = {-INFINITY, -INFINITY};  // of heads 2 t and 2 t + 1, in units of log 2
  float total[2] = {0.0F, 0.0F};              // this lane's part

  __device__ static uint2 dims_of(std::uint32_t g) {
    return kFp8 ? make_uint2(2 * g, 2 * g + 1) : make_uint2(g, g + 8);
  }

  // heads: [num_heads, head_dim]; cos_sin: what they are turned by, or null.
  __device__ void start(const Element* heads, std::uint32_t num_heads, const float* cos_sin) {
    const std::uint32_t g = threadIdx.x % 32 / 4;
    const auto* words = reinterpret_cast<const std::uint32_t*>(heads + g * kHeadDim);
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; ++s) {
      q[s][0] = g < num_heads ? words[pair_of(s, 0) / 2] : 0;
      q[s][1] = g < num_heads ? words[pair_of(s, 1) / 2] : 0;
      sums[s][0] = sums[s][1] = sums[s][2] = sums[s][3] = 0.0F;
    }
    if (cos_sin != nullptr) turn_queries(cos_sin);
    if constexpr (kFp8) {
#pragma unroll
      for (auto& pairs : q) {
        const std::uint32_t low = pairs[0];
        pairs[0] = __byte_perm(low, pairs[1], 0x5410);
        pairs[1] = __byte_perm(low, pairs[1], 0x7632);
      }
    }
  }

  // Of one warp for a token: the sinks of its heads, as if a tile had been added that has only
  // them.
  __device__ void add_sinks(const float* sinks, std::uint32_t num_heads) {
    const std::uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane % 4 * 2 + h >= num_heads) continue;
      maximum[h] = sinks[lane % 4 * 2 + h] * kLog2E;
      total[h] = lane < 4 ? 1.0F : 0.0F;
    }
  }

  template <typename Stage>
  __device__ void add(const Stage& stage, SeenInTile seen, const ScoreRule& rule) {
    float scores[4];
    multiply_k(stage, scores);
    softmax(scores, seen, rule);
    multiply_v(stage, scores);
  }

 private:
  // The first of the neighbouring dims that a lane reads as q[s][i].
  __device__ static std::uint32_t pair_of(std::uint32_t s, std::uint32_t i) {
    const std::uint32_t t = threadIdx.x % 4;
    return 16 * s + (kFp8 ? 4 * t + 2 * i : 2 * t + 8 * i);
  }

  // A lane has the same dims of both halves of its head.
  __device__ void turn_queries(const float* cos_sin) {
    constexpr int kHalf = kHeadDim / 32;
#pragma unroll
    for (int s = 0; s < kHalf; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        turn_words<Element>(q[s][i], q[s + kHalf][i], two_angles<kHeadDim>(cos_sin, pair_of(s, i)));
      }
    }
  }

  // scores: positions g (0, 1) and g + 8 (2, 3), heads 2 t and 2 t + 1.
  template <typename Stage>
  __device__ void multiply_k(const Stage& stage, float (&scores)[4]) const {
    const std::uint32_t lane = threadIdx.x % 32;
    scores[0] = scores[1] = scores[2] = scores[3] = 0.0F;
    if constexpr (kFp8) {
#pragma unroll
      for (int s = 0; s < kHeadDim / 16; s += 2) {
        std::uint32_t codes[4];
        load_matrices<false>(codes, stage.k.chunk(lane % 16, s + lane / 16));
        multiply_codes(scores, codes[0], codes[1], q[s]);
        multiply_codes(scores, codes[2], codes[3], q[s + 1]);
      }
    } else {
#pragma unroll
      for (int s = 0; s < kHeadDim / 16; ++s) {
        std::uint32_t a[4];
        load_matrices<false>(a, stage.k.chunk(lane % 16, s * 2 + lane / 16));
        mma_16816<Element>(scores, a, q[s][0], q[s][1]);
      }
    }
  }

  // Positions g and g + 8, four dims of each.
  __device__ static void multiply_codes(float (&scores)[4], std::uint32_t low, std::uint32_t high,
                                        const std::uint32_t (&q)[2]) {
    const std::uint32_t a[4] = {lower_codes<Element>(low), lower_codes<Element>(high),
                                upper_codes<Element>(low), upper_codes<Element>(high)};
    mma_16816<Element>(scores, a, q[0], q[1]);
  }

  // Dims 2 g and 2 g + 1, two positions of the first eight and two of the others.
  __device__ static void add_codes(float (&sums)[4], std::uint32_t low, std::uint32_t high,
                                   const std::uint32_t (&weights)[2]) {
    const std::uint32_t a[4] = {lower_codes<Element>(low), upper_codes<Element>(low),
                                lower_codes<Element>(high), upper_codes<Element>(high)};
    mma_16816<Element>(sums, a, weights[0], weights[1]);
  }

  // Scores become weights against the new maximum; what was summed before is rescaled.
  __device__ void softmax(float (&scores)[4], SeenInTile seen, const ScoreRule& rule) {
    const std::uint32_t position = threadIdx.x % 32 / 4;
    float rescale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scores[h] = seen(position) ? rule.score_log2<kPlain>(scores[h]) : -INFINITY;
      scores[h + 2] = seen(position + 8) ? rule.score_log2<kPlain>(scores[h + 2]) : -INFINITY;
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

  template <typename Stage>
  __device__ void multiply_v(const Stage& stage, const float (&weights)[4]) {
    const std::uint32_t lane = threadIdx.x % 32;
    std::uint32_t b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pair = pack_pair<Element>(weights[2 * half], weights[2 * half + 1]);
      asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(b[half]) : "r"(pair));
    }
    if constexpr (kFp8) {
#pragma unroll
      for (int m = 0; m < kHeadDim / 16; m += 2) {
        std::uint32_t codes[4];
        load_matrices<true>(codes, stage.v.chunk(lane % 16, m + lane / 16));
        add_codes(sums[m], codes[0], codes[1], b);
        add_codes(sums[m + 1], codes[2], codes[3], b);
      }
    } else {
#pragma unroll
      for (int m = 0; m < kHeadDim / 16; ++m) {
        std::uint32_t a[4];
        load_matrices<true>(a, stage.v.chunk(lane / 16 * 8 + lane % 8, m * 2 + lane / 8 % 2));
        mma_16816<Element>(sums[m], a, b[0], b[1]);
      }
    }
  }
};

}  // namespace inferno::ops::cuda
