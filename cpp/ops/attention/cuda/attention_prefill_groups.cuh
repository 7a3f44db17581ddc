// The part of the prefill kernels for sm_90a that computes: a warpgroup's rows on wgmma.
#pragma once

#include <cmath>

#include "ops/attention/cuda/attention_prefill_load.cuh"

namespace inferno::ops::cuda {

#ifdef INFERNO_SM90A

// A warpgroup's 64 rows. Lane 4 * g + t of warp w has rows 16 w + g and 16 w + g + 8.
template <typename Element, int kHeadDim, bool kPlain>
class RowGroup {
  using Shared = PrefillShared<Element, kHeadDim>;
  using Shape = PrefillShape<kHeadDim>;
  using Kv = typename Shared::Kv;
  using Q = typename Shared::Q;
  static constexpr int kKeyTile = Shape::kKeyTile;
  static constexpr std::uint32_t kChunks = kHeadDim / 8;

 public:
  __device__ RowGroup(const PrefillParams& p, Shared& shared)
      : p_(p), shared_(shared), group_(threadIdx.x / 128 - 1) {}

  __device__ void run(const Schedule& schedule) {
    const std::uint32_t part = Shape::kQueryParts == 1 ? 0 : group_;
    RingPlace<Shape::kQueryStages> next;
    for (; schedule.has(next.count); ++next.count) {
      const std::uint32_t stage = next.stage();
      wait_barrier(&shared_.q_full[stage][part], next.parity());
      attend(shared_.tasks[stage][part], shared_.q[stage]);
      store(shared_.tasks[stage][part], shared_.q[stage]);
      arrive(&shared_.q_empty[stage][part]);
    }
  }

 private:
  // Among the group's own threads.
  __device__ void sync() const { named_sync<128>(1 + group_); }

  // In its 64 rows' matrix; the other one is 8 further.
  __device__ static std::uint32_t own_row() {
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  }

  __device__ void start(const PrefillTask& task) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t row = group_ * kRowGroupRows + own_row() + r * 8;
      limit_[r] = task.position(row) + 1;
      maximum_[r] = -INFINITY;
      total_[r] = 0.0F;
      if (p_.rule.has_sinks<kPlain>()) {
        maximum_[r] = p_.rule.sinks[task.head(row)] * (kLog2E / p_.rule.to_log2);
        total_[r] = threadIdx.x % 4 == 0 ? 1.0F : 0.0F;
      }
    }
#pragma unroll
    for (float& sum : sums_) sum = 0.0F;
  }

  __device__ void attend(const PrefillTask& task, const Q& q) {
    const std::uint32_t num_tiles = (task.num_keys + kKeyTile - 1) / kKeyTile;
    start(task);
    if (task.num_keys == 0) return;  // a graph's padding, for which nothing is copied
    std::uint32_t i = task.first_key<kPlain>(p_.rule) / kKeyTile;
    start_scores(q);
    finish_scores<0>(task, i);
    pack_weights();
    for (++i; i < num_tiles; ++i) {
      start_scores(q);
      start_sums();
      finish_scores<1>(task, i);
      finish_sums();
      rescale_sums();
      pack_weights();
    }
    start_sums();
    finish_sums();
  }

  // The next tile's q · kᵀ, not yet waited for.
  __device__ void start_scores(const Q& rows) {
    wait_barrier(&shared_.k_full[k_next_.stage()], k_next_.parity());
    const std::uint64_t q = matrix_descriptor(&rows.elements[0][group_ * kRowGroupRows], 0);
    const std::uint64_t k = matrix_descriptor(&shared_.k[k_next_.stage()], 0);
    hold(scores_);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; ++s) {
      const std::uint64_t q_step = advanced(q, s / 4 * Q::kPlaneBytes + s % 4 * 32);
      const std::uint64_t k_step = advanced(k, s / 4 * Kv::kPlaneBytes + s % 4 * 32);
      if (s == 0) {
        wgmma_rows<Element, true>(scores_, q_step, k_step);
      } else {
        wgmma_rows<Element, false>(scores_, q_step, k_step);
      }
    }
    wgmma_commit();
  }

  // kPending products that were started later may go on.
  template <int kPending>
  __device__ void finish_scores(const PrefillTask& task, std::uint32_t tile) {
    wgmma_wait<kPending>();
    hold(scores_);
    release(&shared_.k_empty[k_next_.stage()]);
    ++k_next_.count;
    softmax(task, tile);
  }

  // sums += weights · v of the next tile, not yet waited for.
  __device__ void start_sums() {
    wait_barrier(&shared_.v_full[v_next_.stage()], v_next_.parity());
    const std::uint64_t v = matrix_descriptor(&shared_.v[v_next_.stage()], Kv::kPlaneBytes);
    hold(sums_);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kKeyTile / 16; ++s) {
      wgmma_columns<Element>(sums_, weights_[s], advanced(v, s * 16 * 128));
    }
    wgmma_commit();
  }

  __device__ void finish_sums() {
    wgmma_wait<0>();
    hold(sums_);
    release(&shared_.v_empty[v_next_.stage()]);
    ++v_next_.count;
  }

  __device__ static void release(std::uint64_t* empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
  }

  // Scores become weights against the new maximum.
  __device__ void softmax(const PrefillTask& task, std::uint32_t tile) {
    if (p_.rule.has_softcap<kPlain>()) cap();
    if ((tile + 1) * kKeyTile > task.first_position + 1) {
      mask(tile * kKeyTile + threadIdx.x % 4 * 2);
    }
    if (!kPlain && p_.rule.first_seen<kPlain>(task.num_keys) > tile * kKeyTile) {
      mask_before_window(tile * kKeyTile + threadIdx.x % 4 * 2);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = maximum_[r];
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores_[4 * n + 2 * r], scores_[4 * n + 2 * r + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      const float base = shift_of<kPlain>(largest);
      rescale_[r] = exp2_fast((maximum_[r] - base) * p_.rule.to_log2);
      maximum_[r] = largest;
      total_[r] *= rescale_[r];
      const float shift = base * p_.rule.to_log2;
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores_[4 * n + 2 * r + i];
          score = exp2_fast(fmaf(score, p_.rule.to_log2, -shift));
          total_[r] += score;
        }
      }
    }
  }

  __device__ void mask(std::uint32_t column) {
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + n * 8 + i % 2 >= limit_[i / 2]) scores_[4 * n + i] = -INFINITY;
      }
    }
  }

  __device__ void mask_before_window(std::uint32_t column) {
    const std::uint32_t first[2] = {p_.rule.first_seen<kPlain>(limit_[0]),
                                    p_.rule.first_seen<kPlain>(limit_[1])};
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + n * 8 + i % 2 < first[i / 2]) scores_[4 * n + i] = -INFINITY;
      }
    }
  }

  __device__ void cap() {
#pragma unroll
    for (float& score : scores_) score = p_.rule.tanh_of(score);
  }

  __device__ void rescale_sums() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums_[i] *= rescale_[i / 2 % 2];
  }

  __device__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kKeyTile / 4; ++i) {
      weights_[i / 4][i % 4] = pack_pair<Element>(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  // Through q's place, whose use has ended, to rows of 16 bytes a lane.
  __device__ void store(const PrefillTask& task, Q& place) {
    const std::uint32_t first_row = group_ * kRowGroupRows;
    sync();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = total_[r];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      const float inverse = inverse_of_total(total) * p_.v_scale;
      const std::uint32_t row = first_row + own_row() + r * 8;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        reinterpret_cast<std::uint32_t*>(place.at(row, n))[threadIdx.x % 4] =
            pack_pair<Element>(sums_[4 * n + 2 * r] * inverse, sums_[4 * n + 2 * r + 1] * inverse);
      }
    }
    sync();
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x % 128; i < kRowGroupRows * kChunks; i += 128) {
      const std::uint32_t row = first_row + i / kChunks;
      if (row >= task.num_rows) break;
      static_cast<uint4*>(p_.out)[task.head_index(row, p_.num_heads) * kChunks + i % kChunks] =
          *place.at(row, i % kChunks);
    }
  }

  const PrefillParams& p_;
  Shared& shared_;
  std::uint32_t group_;
  RingPlace<kLoadStages> k_next_;
  RingPlace<kLoadStages> v_next_;
  std::uint32_t limit_[2];  // positions that the row sees
  float scores_[kKeyTile / 2];
  float sums_[kHeadDim / 2];
  std::uint32_t weights_[kKeyTile / 16][4];
  float maximum_[2];
  float rescale_[2];
  float total_[2];  // this lane's part
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda
