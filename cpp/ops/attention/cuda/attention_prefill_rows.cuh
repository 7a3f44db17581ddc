// The portable prefill kernel's tiles of keys and values in shared memory, and what a warp does
// with them: mma.sync on every device.
//
// Keys are taken in tiles of a fixed size, whose first positions are multiples of it, from the
// first that a row of the block sees; each row on its own. A tile that a row does not see, before
// its window or beyond its position, leaves its sums as they were, bit by bit. So a row's bits do
// not depend on what else is in its block.
#pragma once

#include <cmath>

#include "ops/attention/cuda/attention_prefill.cuh"

namespace inferno::ops::cuda {

inline constexpr int kPortableWarps = kPrefillRows / 16;
inline constexpr int kPortableThreads = kPortableWarps * 32;

// Which row of k and v has a position; 0 where that is not valid.
__device__ inline std::size_t cache_row(const PrefillParams& p, const PrefillTask& task,
                                        std::uint32_t position, bool valid) {
  const std::uint32_t id = valid ? task.table[position >> p.block_shift] : 0;
  return ((std::size_t{id} * p.num_kv_heads + task.kv_head) << p.block_shift) +
         position % (1U << p.block_shift);
}

template <typename Element, int kHeadDim>
struct PrefillStage {
  static constexpr int kKeys = kHeadDim > 128 ? 32 : 64;
  static constexpr int kStride = kHeadDim + 8;  // rows begin 4 banks apart: ldmatrix in one go

  Element k[kKeys][kStride];
  Element v[kKeys][kStride];

  // Positions before first_key and from num_keys on become zeros: what lies there may be anything.
  template <bool kPlain>
  __device__ void load(const PrefillParams& p, const PrefillTask& task, std::uint32_t first) {
    constexpr std::uint32_t kChunks = kHeadDim / 8;
    const std::uint32_t first_key = task.first_key<kPlain>(p.rule);
    for (std::uint32_t i = threadIdx.x; i < kKeys * kChunks; i += kPortableThreads) {
      const std::uint32_t position = first + i / kChunks;
      const bool valid = position >= first_key && position < task.num_keys;
      const std::size_t source = cache_row(p, task, position, valid) * kHeadDim + i % kChunks * 8;
      copy_16(&k[i / kChunks][i % kChunks * 8], static_cast<const Element*>(p.k) + source, valid);
      copy_16(&v[i / kChunks][i % kChunks * 8], static_cast<const Element*>(p.v) + source, valid);
    }
    commit_copies();
  }
};

// A warp's 16 rows; lane = 4 * g + t has rows g and g + 8 of them.
template <typename Element, int kHeadDim, bool kPlain>
class PrefillRows {
  using Stage = PrefillStage<Element, kHeadDim>;
  static constexpr int kScoreTiles = Stage::kKeys / 8;

 public:
  __device__ PrefillRows(const PrefillParams& p, const PrefillTask& task) {
    const std::uint32_t heads_per_token = p.num_heads + 2 * p.num_kv_heads;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t row = first_row() + r * 8;
      limit_[r] = task.position(row) + 1;
      first_[r] = p.rule.first_seen<kPlain>(limit_[r]);
      if (p.rule.has_sinks<kPlain>()) {
        maximum_[r] = p.rule.sinks[task.head(row)] * kLog2E;
        total_[r] = threadIdx.x % 4 == 0 ? 1.0F : 0.0F;
      }
      const auto* q = static_cast<const std::uint32_t*>(p.qkv) +
                      task.head_index(row, heads_per_token) * (kHeadDim / 2) + threadIdx.x % 4;
#pragma unroll
      for (int s = 0; s < kHeadDim / 16; ++s) {
        q_[s][r] = row < task.num_rows ? q[s * 8] : 0;
        q_[s][r + 2] = row < task.num_rows ? q[s * 8 + 4] : 0;
      }
    }
#pragma unroll
    for (auto& sum : sums_) sum[0] = sum[1] = sum[2] = sum[3] = 0.0F;
  }

  __device__ void attend(const Stage& stage, std::uint32_t first, const ScoreRule& rule) {
    float scores[kScoreTiles][4];
    multiply_k(stage, scores);
    softmax(scores, first, rule);
    multiply_v(stage, scores);
  }

  __device__ void store(const PrefillParams& p, const PrefillTask& task) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = total_[r];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      const std::uint32_t row = first_row() + r * 8;
      if (row >= task.num_rows) continue;
      const float inverse = inverse_of_total(total) * p.v_scale;
      auto* out = static_cast<std::uint32_t*>(p.out) +
                  task.head_index(row, p.num_heads) * (kHeadDim / 2) + threadIdx.x % 4;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        out[n * 4] = pack_pair<Element>(sums_[n][2 * r] * inverse, sums_[n][2 * r + 1] * inverse);
      }
    }
  }

 private:
  __device__ static std::uint32_t first_row() {
    return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  }

  __device__ void multiply_k(const Stage& stage, float (&scores)[kScoreTiles][4]) {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t key = lane / 16 * 8 + lane % 8;
    const std::uint32_t dim = lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < kScoreTiles; n += 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = scores[n + 1][i] = 0.0F;
#pragma unroll
      for (int s = 0; s < kHeadDim / 16; ++s) {
        std::uint32_t b[4];
        load_matrices<false>(b, &stage.k[n * 8 + key][s * 16 + dim]);
        mma_16816<Element>(scores[n], q_[s], b[0], b[1]);
        mma_16816<Element>(scores[n + 1], q_[s], b[2], b[3]);
      }
    }
  }

  __device__ void softmax(float (&scores)[kScoreTiles][4], std::uint32_t first,
                          const ScoreRule& rule) {
    const std::uint32_t column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = maximum_[r];
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[n][2 * r + i];
          const std::uint32_t position = column + n * 8 + i;
          const bool seen = position >= first_[r] && position < limit_[r];
          score = seen ? rule.score_log2<kPlain>(score) : -INFINITY;
          largest = fmaxf(largest, score);
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      const float shift = shift_of<kPlain>(largest);
      const float rescale = exp2_fast(maximum_[r] - shift);
      maximum_[r] = largest;
      total_[r] *= rescale;
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[n][2 * r + i];
          score = exp2_fast(score - shift);
          total_[r] += score;
        }
      }
#pragma unroll
      for (auto& sum : sums_) {
        sum[2 * r] *= rescale;
        sum[2 * r + 1] *= rescale;
      }
    }
  }

  __device__ void multiply_v(const Stage& stage, const float (&weights)[kScoreTiles][4]) {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t key = lane % 16;
    const std::uint32_t dim = lane / 16 * 8;
#pragma unroll
    for (int s = 0; s < kScoreTiles / 2; ++s) {
      const float(&low)[4] = weights[2 * s];
      const float(&high)[4] = weights[2 * s + 1];
      const std::uint32_t a[4] = {
          pack_pair<Element>(low[0], low[1]), pack_pair<Element>(low[2], low[3]),
          pack_pair<Element>(high[0], high[1]), pack_pair<Element>(high[2], high[3])};
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        std::uint32_t b[4];
        load_matrices<true>(b, &stage.v[s * 16 + key][n * 8 + dim]);
        mma_16816<Element>(sums_[n], a, b[0], b[1]);
        mma_16816<Element>(sums_[n + 1], a, b[2], b[3]);
      }
    }
  }

  std::uint32_t q_[kHeadDim / 16][4];
  float sums_[kHeadDim / 8][4];
  float maximum_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0.0F, 0.0F};  // this lane's part
  std::uint32_t first_[2];         // position that the row sees
  std::uint32_t limit_[2];         // one past the last
};

}  // namespace inferno::ops::cuda
