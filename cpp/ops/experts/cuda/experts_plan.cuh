// What a block finds out about a batch by itself: the pairs in the order of their experts, and the
// tiles that this makes.
#pragma once

#include "ops/cuda/cuda_device.cuh"
#include "ops/experts/cuda/experts_product.h"

namespace inferno::ops::cuda::experts {

constexpr std::uint32_t kAllLanes = 0xFFFFFFFF;
constexpr std::uint32_t kPerLane = kMaxExperts / 32;  // experts that a lane counts for

__device__ __forceinline__ std::uint32_t quotient_up(std::uint32_t a, std::uint32_t b) {
  return (a + b - 1) / b;
}

// The sum of the values of the lanes below.
__device__ __forceinline__ std::uint32_t sum_before(std::uint32_t value) {
  std::uint32_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (threadIdx.x % 32 >= step) sum += other;
  }
  return sum - value;
}

// Counts [E] become where each begins, and [E] the end of all. By one warp.
__device__ __forceinline__ void starts_from_counts(std::uint32_t* starts, std::uint32_t size) {
  const std::uint32_t first = threadIdx.x % 32 * kPerLane;
  std::uint32_t mine = 0;
  for (std::uint32_t i = first; i < min(first + kPerLane, size); ++i) mine += starts[i];
  std::uint32_t at = sum_before(mine);
  for (std::uint32_t i = first; i < min(first + kPerLane, size); ++i) {
    const std::uint32_t count = starts[i];
    starts[i] = at;
    at += count;
  }
  if (threadIdx.x % 32 == 31) starts[size] = at;
}

// A counting sort by the whole block, in which pairs of an expert keep their order. Scratch:
// counts [warps, E] in shared memory.
struct PairSort {
  const PairRouting& routing;
  std::uint32_t* counts;
  std::uint32_t* starts;     // shared [E + 1]
  std::uint32_t* order;      // [P]
  std::uint32_t* positions;  // [P], or null

  __device__ std::uint32_t expert_of(std::uint32_t pair) const {
    return min(__ldcg(routing.expert_ids + pair), routing.num_experts);
  }

  __device__ void run() const {
    const std::uint32_t warps = blockDim.x / 32;
    const std::uint32_t size = routing.num_experts;
    for (std::uint32_t i = threadIdx.x; i < warps * size; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    // Each warp has a part of the pairs, and counts of its own.
    const std::uint32_t part = quotient_up(routing.num_pairs, warps * 32) * 32;
    const std::uint32_t begin = threadIdx.x / 32 * part;
    const std::uint32_t end = min(begin + part, routing.num_pairs);
    std::uint32_t* mine = counts + threadIdx.x / 32 * size;
    for (std::uint32_t pair = begin + threadIdx.x % 32; pair < end; pair += 32) {
      const std::uint32_t expert = expert_of(pair);
      if (expert < size) atomicAdd(mine + expert, 1);
    }
    __syncthreads();
    for (std::uint32_t expert = threadIdx.x; expert < size; expert += blockDim.x) {
      std::uint32_t sum = 0;
      for (std::uint32_t warp = 0; warp < warps; ++warp) {
        const std::uint32_t count = counts[warp * size + expert];
        counts[warp * size + expert] = sum;
        sum += count;
      }
      starts[expert] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) starts_from_counts(starts, size);
    __syncthreads();
    for (std::uint32_t first = begin; first < end; first += 32) place(mine, first, end);
    __syncthreads();
  }

 private:
  // 32 pairs, by a warp.
  __device__ void place(std::uint32_t* mine, std::uint32_t first, std::uint32_t end) const {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t pair = first + lane;
    const std::uint32_t expert = pair < end ? expert_of(pair) : routing.num_experts;
    const std::uint32_t same = __match_any_sync(kAllLanes, expert);
    const std::uint32_t before = __popc(same & ((1U << lane) - 1));
    const bool exists = expert < routing.num_experts;
    if (exists) {
      const std::uint32_t at = starts[expert] + mine[expert] + before;
      order[at] = pair;
      if (positions != nullptr) positions[pair] = at;
    }
    __syncwarp();
    if (exists && before == 0) mine[expert] += __popc(same);
    __syncwarp();
  }
};

// In shared memory.
struct Plan {
  std::uint32_t starts[kMaxExperts + 1];  // of an expert's pairs
  std::uint32_t chosen[kMaxExperts];      // experts that have pairs, ascending
  std::uint32_t ends[kMaxExperts];        // of each chosen one's tiles, those before counted in
  std::uint32_t num_chosen;
};

// How each chosen expert's product is cut.
struct Cut {
  std::uint32_t rows;          // of x in a tile
  std::uint32_t column_tiles;  // of outputs
};

// From `starts` what follows in a plan. By one warp.
__device__ __forceinline__ void list_tiles(Plan& plan, std::uint32_t num_experts, const Cut& cut) {
  const std::uint32_t first = threadIdx.x % 32 * kPerLane;
  const std::uint32_t end = min(first + kPerLane, num_experts);
  const auto tiles_of = [&](std::uint32_t expert) {
    return quotient_up(plan.starts[expert + 1] - plan.starts[expert], cut.rows) * cut.column_tiles;
  };
  std::uint32_t chosen = 0;
  std::uint32_t tiles = 0;
  for (std::uint32_t expert = first; expert < end; ++expert) {
    chosen += tiles_of(expert) > 0 ? 1 : 0;
    tiles += tiles_of(expert);
  }
  std::uint32_t at = sum_before(chosen);
  std::uint32_t sum = sum_before(tiles);
  for (std::uint32_t expert = first; expert < end; ++expert) {
    const std::uint32_t more = tiles_of(expert);
    if (more == 0) continue;
    sum += more;
    plan.chosen[at] = expert;
    plan.ends[at] = sum;
    ++at;
  }
  if (threadIdx.x % 32 == 31) plan.num_chosen = at;
}

// The tiles of a block, one after the other: of each expert the row tiles of one column tile are
// neighbours, so that they read its weights together.
class TileWalk {
 public:
  __device__ TileWalk(const Plan& plan, const Cut& cut) : plan_(plan), cut_(cut), at_(blockIdx.x) {
    find();
  }
  __device__ bool exists() const { return nth_ < plan_.num_chosen; }
  __device__ void advance() {
    at_ += gridDim.x;
    find();
  }
  __device__ std::uint32_t expert() const { return expert_; }
  __device__ std::uint32_t first_row() const { return first_row_; }  // in the pairs' order
  __device__ std::uint32_t num_rows() const { return num_rows_; }
  __device__ std::uint32_t column_tile() const { return column_tile_; }

 private:
  __device__ void find() {
    while (nth_ < plan_.num_chosen && at_ >= plan_.ends[nth_]) begin_ = plan_.ends[nth_++];
    if (!exists()) return;
    expert_ = plan_.chosen[nth_];
    const std::uint32_t start = plan_.starts[expert_];
    const std::uint32_t count = plan_.starts[expert_ + 1] - start;
    const std::uint32_t row_tiles = quotient_up(count, cut_.rows);
    column_tile_ = (at_ - begin_) / row_tiles;
    const std::uint32_t row = (at_ - begin_) % row_tiles * cut_.rows;
    first_row_ = start + row;
    num_rows_ = min(count - row, cut_.rows);
  }

  const Plan& plan_;
  Cut cut_;
  std::uint32_t at_;
  std::uint32_t nth_ = 0;
  std::uint32_t begin_ = 0;
  std::uint32_t expert_ = 0;
  std::uint32_t first_row_ = 0;
  std::uint32_t num_rows_ = 0;
  std::uint32_t column_tile_ = 0;
};

}  // namespace inferno::ops::cuda::experts
