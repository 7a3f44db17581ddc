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

// The lanes that have the same expert, or like this one none. (__match_any_sync goes through the
// different values one by one.)
__device__ __forceinline__ std::uint32_t lanes_of_same(std::uint32_t expert) {
  static_assert(kMaxExperts == 1U << 8);
  std::uint32_t same = kAllLanes;
#pragma unroll
  for (int bit = 0; bit <= 8; ++bit) {
    const bool mine = (expert >> bit & 1) != 0;
    const std::uint32_t lanes = __ballot_sync(kAllLanes, mine);
    same &= mine ? lanes : ~lanes;
  }
  return same;
}

// A counting sort in which pairs of an expert keep their order, by one or by several blocks. Each
// places a part of the pairs, and counts all.
struct PairSort {
  const PairRouting& routing;
  std::uint32_t begin;  // of the block's part
  std::uint32_t end;
  std::uint32_t* counts;     // scratch: shared [warps + 2, E]
  std::uint32_t* starts;     // shared [E + 1]
  std::uint32_t* order;      // [P]
  std::uint32_t* positions;  // [P], or null

  // By the whole block.
  __device__ void run() const {
    const std::uint32_t warps = blockDim.x / 32;
    const std::uint32_t size = routing.num_experts;
    std::uint32_t* before = counts + warps * size;
    std::uint32_t* after = before + size;
    for (std::uint32_t i = threadIdx.x; i < (warps + 2) * size; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    count({0, begin}, before);
    count({end, routing.num_pairs}, after);
    const Range part = share_of({begin, end}, threadIdx.x / 32, warps);
    std::uint32_t* mine = counts + threadIdx.x / 32 * size;
    for_each_batch(part, [&](std::uint32_t, std::uint32_t expert) {
      if (expert < size) atomicAdd(mine + expert, 1);
    });
    __syncthreads();
    for (std::uint32_t expert = threadIdx.x; expert < size; expert += blockDim.x) {
      std::uint32_t sum = before[expert];
      for (std::uint32_t warp = 0; warp < warps; ++warp) {
        const std::uint32_t more = counts[warp * size + expert];
        counts[warp * size + expert] = sum;
        sum += more;
      }
      starts[expert] = sum + after[expert];
    }
    __syncthreads();
    if (threadIdx.x < 32) starts_from_counts(starts, size);
    __syncthreads();
    for_each_batch(part,
                   [&](std::uint32_t pair, std::uint32_t expert) { place(mine, pair, expert); });
    __syncthreads();
  }

 private:
  struct Range {
    std::uint32_t begin, end;
  };
  // A warp's part of a range, of whole groups of 32.
  __device__ static Range share_of(const Range& range, std::uint32_t warp, std::uint32_t warps) {
    const std::uint32_t share = quotient_up(range.end - range.begin, warps * 32) * 32;
    const std::uint32_t first = min(range.begin + warp * share, range.end);
    return {first, min(first + share, range.end)};
  }

  __device__ void count(const Range& range, std::uint32_t* into) const {
    for_each_batch(share_of(range, threadIdx.x / 32, blockDim.x / 32),
                   [&](std::uint32_t, std::uint32_t expert) {
                     if (expert < routing.num_experts) atomicAdd(into + expert, 1);
                   });
  }

  // Calls fn(pair, its expert) for 32 pairs of a warp after the other; beyond the last pair, too,
  // with no expert. Several loads are under way together.
  template <typename Fn>
  __device__ void for_each_batch(const Range& range, Fn fn) const {
    constexpr std::uint32_t kLoads = 8;
    for (std::uint32_t first = range.begin; first < range.end; first += kLoads * 32) {
      std::uint32_t experts[kLoads];
#pragma unroll
      for (std::uint32_t i = 0; i < kLoads; ++i) {
        const std::uint32_t pair = first + i * 32 + threadIdx.x % 32;
        experts[i] = pair < range.end ? min(__ldcg(routing.expert_ids + pair), routing.num_experts)
                                      : routing.num_experts;
      }
#pragma unroll
      for (std::uint32_t i = 0; i < kLoads; ++i) {
        if (first + i * 32 < range.end) fn(first + i * 32 + threadIdx.x % 32, experts[i]);
      }
    }
  }

  // By a warp.
  __device__ void place(std::uint32_t* mine, std::uint32_t pair, std::uint32_t expert) const {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t same = lanes_of_same(expert);
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
  // Of the experts that have pairs, ascending:
  std::uint32_t chosen[kMaxExperts];
  std::uint32_t firsts[kMaxExperts];  // where their pairs begin in the order
  std::uint32_t counts[kMaxExperts];  // of pairs
  std::uint32_t ends[kMaxExperts];    // of their tiles, those before counted in
  std::uint32_t num_chosen;
  std::uint32_t starts[kMaxExperts + 1];  // of all experts' pairs, on the way
};

// How each chosen expert's product is cut.
struct Cut {
  std::uint32_t rows;          // of x in a tile
  std::uint32_t column_tiles;  // of outputs
  __device__ std::uint32_t tiles_of(std::uint32_t count) const {
    return quotient_up(count, rows) * column_tiles;
  }
};

// From `starts` the rest of a plan. By one warp.
__device__ __forceinline__ void list_tiles(Plan& plan, std::uint32_t num_experts, const Cut& cut) {
  const std::uint32_t first = threadIdx.x % 32 * kPerLane;
  const std::uint32_t end = min(first + kPerLane, num_experts);
  const auto count_of = [&](std::uint32_t expert) {
    return plan.starts[expert + 1] - plan.starts[expert];
  };
  std::uint32_t chosen = 0;
  std::uint32_t tiles = 0;
  for (std::uint32_t expert = first; expert < end; ++expert) {
    chosen += count_of(expert) > 0 ? 1 : 0;
    tiles += cut.tiles_of(count_of(expert));
  }
  std::uint32_t at = sum_before(chosen);
  std::uint32_t sum = sum_before(tiles);
  for (std::uint32_t expert = first; expert < end; ++expert) {
    const std::uint32_t count = count_of(expert);
    if (count == 0) continue;
    sum += cut.tiles_of(count);
    plan.chosen[at] = expert;
    plan.firsts[at] = plan.starts[expert];
    plan.counts[at] = count;
    plan.ends[at] = sum;
    ++at;
  }
  if (threadIdx.x % 32 == 31) plan.num_chosen = at;
}

// A plan of up to 32 pairs, and their order, at once. By one warp.
__device__ __forceinline__ void plan_few(Plan& plan, const PairRouting& routing, const Cut& cut,
                                         std::uint32_t* order) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t size = routing.num_experts;
  const std::uint32_t expert =
      lane < routing.num_pairs ? min(__ldcg(routing.expert_ids + lane), size) : size;
  const std::uint32_t same = lanes_of_same(expert);
  const bool exists = expert < size;
  const bool leads = exists && (same & ((1U << lane) - 1)) == 0;
  const std::uint32_t count = __popc(same);
  const std::uint32_t tiles = cut.tiles_of(count);
  std::uint32_t first = 0;
  std::uint32_t nth = 0;
  std::uint32_t end = tiles;
  const std::uint32_t leaders = __ballot_sync(kAllLanes, leads);
  for (std::uint32_t left = leaders; left != 0; left &= left - 1) {
    const int leader = __ffs(left) - 1;
    const std::uint32_t other = __shfl_sync(kAllLanes, expert, leader);
    const std::uint32_t other_count = __shfl_sync(kAllLanes, count, leader);
    const std::uint32_t other_tiles = __shfl_sync(kAllLanes, tiles, leader);
    if (other >= expert) continue;
    ++nth;
    first += other_count;
    end += other_tiles;
  }
  if (exists) order[first + __popc(same & ((1U << lane) - 1))] = lane;
  if (leads) {
    plan.chosen[nth] = expert;
    plan.firsts[nth] = first;
    plan.counts[nth] = count;
    plan.ends[nth] = end;
  }
  if (lane == 0) plan.num_chosen = __popc(leaders);
}

// The tiles of a block, one after the other: of each expert the row tiles of one column tile are
// neighbours, so that they read its weights together.
class TileWalk {
 public:
  __device__ TileWalk(const Plan& plan, const Cut& cut) : plan_(plan), cut_(cut) { find(); }
  __device__ bool exists() const { return nth_ < plan_.num_chosen; }
  __device__ void advance() {
    round_ += gridDim.x;
    turn_ += kTurn;
    if (turn_ >= gridDim.x) turn_ %= gridDim.x;
    find();
  }
  __device__ std::uint32_t expert() const { return expert_; }
  __device__ std::uint32_t first_row() const { return first_row_; }  // in the pairs' order
  __device__ std::uint32_t num_rows() const { return num_rows_; }
  __device__ std::uint32_t column_tile() const { return column_tile_; }

 private:
  // From round to round a block's place turns: small row tiles come at regular distances, and would
  // always be the same blocks'.
  static constexpr std::uint32_t kTurn = 7;

  __device__ void find() {
    const std::uint32_t place = blockIdx.x + turn_;
    const std::uint32_t at = round_ + (place < gridDim.x ? place : place - gridDim.x);
    while (nth_ < plan_.num_chosen && at >= plan_.ends[nth_]) begin_ = plan_.ends[nth_++];
    if (!exists()) return;
    expert_ = plan_.chosen[nth_];
    const std::uint32_t count = plan_.counts[nth_];
    const std::uint32_t row_tiles = quotient_up(count, cut_.rows);
    column_tile_ = (at - begin_) / row_tiles;
    const std::uint32_t row = (at - begin_) % row_tiles * cut_.rows;
    first_row_ = plan_.firsts[nth_] + row;
    num_rows_ = min(count - row, cut_.rows);
  }

  const Plan& plan_;
  Cut cut_;
  std::uint32_t round_ = 0;
  std::uint32_t turn_ = 0;
  std::uint32_t nth_ = 0;
  std::uint32_t begin_ = 0;
  std::uint32_t expert_ = 0;
  std::uint32_t first_row_ = 0;
  std::uint32_t num_rows_ = 0;
  std::uint32_t column_tile_ = 0;
};

}  // namespace inferno::ops::cuda::experts
