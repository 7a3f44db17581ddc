// How the kernel of experts_stream.cu brings tiles of experts' weights, and the rows that they are
// multiplied with, through shared memory.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"
#include "ops/experts/cuda/experts_plan.cuh"

namespace inferno::ops::cuda::experts {

constexpr std::uint32_t kConsumers = 8;  // warps
constexpr std::uint32_t kConsumerThreads = kConsumers * 32;
constexpr std::uint32_t kThreads = kConsumerThreads + 32;
constexpr std::uint32_t kBoxRowBytes = 128;
// A warp has 32 of 256 columns, and of the next 256 …, whatever a stage holds of them: this is the
// order of its sum.
constexpr std::uint32_t kWarpColumns = 32;
constexpr std::uint32_t kTurnColumns = kConsumers * kWarpColumns;
constexpr std::uint32_t kTurnBoxes = kTurnColumns / kBoxColumns;
constexpr std::uint32_t kSwizzleAlignment = 1024;

// kMatrices: of 16 rows of weights, in a tile: two runs, of a gate the same outputs' gate and up,
// else neighbours, of which a matrix takes 8 rows each. kGroups: of 8 rows of x.
template <int kMatrices, int kGroups>
struct Ring {
  static constexpr std::uint32_t kRunRows = kMatrices * 8;
  static constexpr std::uint32_t kTurns = kMatrices == 1 ? 2 : 1;  // of all warps, in a stage
  static constexpr std::uint32_t kBoxes = kTurns * kTurnBoxes;
  static constexpr std::uint32_t kStageColumns = kTurns * kTurnColumns;
  static constexpr std::uint32_t kRunBytes = kRunRows * kBoxRowBytes;  // of a box
  static constexpr std::uint32_t kWeightBytes = 2 * kBoxes * kRunBytes;
  static constexpr std::uint32_t kRows = kGroups * 8;
  // The 16 bytes between two rows put the same column of 8 rows into different banks.
  static constexpr std::uint32_t kRowBytes = kStageColumns * 2 + 16;
  static constexpr std::uint32_t kSumBytes = kConsumers * kMatrices * 128 * 4;
  // With few rows two blocks fit a multiprocessor: the next kernel's ring fills while this one's
  // empties. With more the kernel takes longer, and its stages more room.
  static constexpr std::uint32_t kBlocks = kGroups == 1 ? 2 : 1;
  static constexpr std::uint32_t kSharedBytes = (kBlocks == 2 ? 110 : 222) * 1024;
  static constexpr std::uint32_t kStages =
      (kSharedBytes - kSwizzleAlignment - kSumBytes - sizeof(Plan) - kMaxBlockPairs * 4) /
      (kWeightBytes + kRows * kRowBytes);
  static_assert(kStages > 1);
  static_assert(kStages * kWeightBytes >=
                (kThreads / 32 + 2) * kMaxExperts * 4);  // the sort's scratch
};

struct StreamArgs {
  CUtensorMap weight_map;  // boxes of kRunRows rows, a stage's side by side
  PairRouting routing;
  SortedPairs sorted;
  bool routed;
  const void* x;
  std::uint32_t row_divisor;  // of a pair, for its row of x
  std::uint32_t num_columns;  // K
  std::uint32_t outputs_per_tile;
  std::uint32_t second_run;  // its distance from the first
  Cut cut;
  bool gate;
  Activation activation;
  const float* bias;
  std::uint32_t num_outputs;
  const float* square_sums;
  std::uint32_t num_square_sums;
  float eps;
  const float* pair_weights;  // [P] or null: what a pair's outputs are multiplied by
  void* out;
};

#ifdef INFERNO_SM90A

// Where things are in a block's shared memory.
struct Shared {
  std::uint64_t* full;    // [kStages] weights and rows have come
  std::uint64_t* empty;   // [kStages] all consumers have read them
  std::uint32_t weights;  // address: [kStages] boxes of the first run, then of the second
  std::uint32_t rows;     // address: [kStages, kRows]
  float* sums;            // [kConsumers, kMatrices, 128]
  std::uint32_t zeros;    // address: 16 bytes
  float* scale;           // [kMaxFewRows] of a token's row
  float* pair_weights;    // [kMaxBlockPairs]
  Plan* plan;
  const std::uint32_t* order;  // [P]
};

// Stages of tiles, one after the other. Tiles: TileWalk, or what goes like it.
template <typename Tiles, std::uint32_t kStageColumns>
class StageWalk {
 public:
  __device__ StageWalk(const StreamArgs& args, const Shared& shared)
      : tiles_(*shared.plan, args.cut), num_columns_(args.num_columns) {}
  __device__ bool exists() const { return tiles_.exists(); }
  __device__ void advance() {
    column_ += kStageColumns;
    if (column_ < num_columns_) return;
    column_ = 0;
    tiles_.advance();
  }
  __device__ const Tiles& tile() const { return tiles_; }
  __device__ std::uint32_t column() const { return column_; }
  __device__ std::uint32_t row_bytes() const {
    return min(num_columns_ - column_, kStageColumns) * 2;
  }

 private:
  Tiles tiles_;
  std::uint32_t num_columns_;
  std::uint32_t column_ = 0;
};

// One warp: all stages of all tiles of this block.
template <typename Ring, typename Tiles>
class Producer {
 public:
  __device__ Producer(const StreamArgs& args, const Shared& shared)
      : args_(args), shared_(shared), lane_(threadIdx.x % 32), policy_(evict_first_policy()) {}

  __device__ void run() const {
    Walk weights(args_, shared_);
    Walk rows(args_, shared_);
    std::uint32_t filled = 0;
    for (; filled < kStages && weights.exists(); weights.advance()) {
      copy_weights(filled++, weights);
    }
    if (!weights.exists()) let_next_start();
    wait_for_previous();
    for (std::uint32_t stage = 0; stage < filled; ++stage, rows.advance()) copy_rows(stage, rows);
    RingPosition<kStages> at;
    while (weights.exists()) {
      wait_barrier(&shared_.empty[at.stage], at.parity);
      copy_weights(at.stage, weights);
      copy_rows(at.stage, weights);
      at.advance();
      weights.advance();
      if (!weights.exists()) let_next_start();
    }
  }

 private:
  using Walk = StageWalk<Tiles, Ring::kStageColumns>;
  static constexpr std::uint32_t kStages = Ring::kStages;

  __device__ void copy_weights(std::uint32_t stage, const Walk& walk) const {
    if (lane_ == 0) {
      std::uint64_t* full = &shared_.full[stage];
      const std::uint32_t to = shared_.weights + stage * Ring::kWeightBytes;
      const uint3 from{walk.tile().column_tile() * args_.outputs_per_tile,
                       walk.column() / kBoxColumns, walk.tile().expert()};
      const uint3 second{from.x + args_.second_run, from.y, from.z};
      arrive_expecting(full, Ring::kWeightBytes + walk.tile().num_rows() * walk.row_bytes());
      copy_stack_boxes(to, &args_.weight_map, from, full, policy_);
      copy_stack_boxes(to + Ring::kWeightBytes / 2, &args_.weight_map, second, full, policy_);
    }
    __syncwarp();
  }

  __device__ void copy_rows(std::uint32_t stage, const Walk& walk) const {
    static_assert(Ring::kRows <= 32);
    if (lane_ >= walk.tile().num_rows()) return;
    const std::size_t row = shared_.order[walk.tile().first_row() + lane_] / args_.row_divisor;
    const std::byte* from =
        static_cast<const std::byte*>(args_.x) + (row * args_.num_columns + walk.column()) * 2;
    const std::uint32_t to = shared_.rows + (stage * Ring::kRows + lane_) * Ring::kRowBytes;
    copy_bytes(to, from, walk.row_bytes(), &shared_.full[stage]);
  }

  const StreamArgs& args_;
  const Shared& shared_;
  std::uint32_t lane_;
  std::uint64_t policy_;
};

// What the warps that multiply have in common. kGroups: of 8 columns of sums.
template <typename Element, int kMatrices, int kGroups, typename Ring>
class Multiplier {
 protected:
  __device__ explicit Multiplier(const Shared& shared)
      : shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  struct Sums {
    float at[kGroups][kMatrices][4];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  // Where in a row of the ring this lane's part of the warp's columns of a turn is.
  __device__ std::uint32_t column_offset(std::uint32_t turn) const {
    static_assert(kWarpColumns == 32);  // two steps of 16
    return (turn * kTurnColumns + warp_ * kWarpColumns) * 2 + lane_ / 8 * 16;
  }

  // Calls multiply_turn(turn) for the warp's columns of the stage that begins at `column`: either
  // all columns of a turn are there or none.
  template <typename Fn>
  __device__ void for_each_turn(std::uint32_t column, std::uint32_t num_columns,
                                Fn multiply_turn) const {
#pragma unroll
    for (std::uint32_t turn = 0; turn < Ring::kTurns; ++turn) {
      if (column + turn * kTurnColumns + warp_ * kWarpColumns < num_columns) multiply_turn(turn);
    }
  }

  // The warp's columns of a turn with the rows of x whose columns are at rows[…], of which lanes
  // 8 i to 8 i + 7 give addresses. The swizzle of weights: in row r of the ring, the 16 bytes
  // numbered c lie at c ^ (r % 8).
  __device__ void multiply(std::uint32_t turn, const std::uint32_t (&rows)[kGroups],
                           Sums& sums) const {
    const std::uint32_t row = lane_ % 8;
    const std::uint32_t box = turn * kTurnBoxes + warp_ * kWarpColumns / kBoxColumns;
    const std::uint32_t column = warp_ * kWarpColumns % kBoxColumns / 8;  // of 16 bytes, in the box
    // Matrices 0 and 2 of an mma's weights are of the first run, 1 and 3 of the second; 2 and 3
    // eight columns on.
    const std::uint32_t weights = shared_.weights + at_.stage * Ring::kWeightBytes +
                                  lane_ / 8 % 2 * (Ring::kWeightBytes / 2) + box * Ring::kRunBytes +
                                  row * kBoxRowBytes;
    Fragments b[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) b[group] = load_matrices(rows[group]);
#pragma unroll
    for (std::uint32_t step = 0; step < 2; ++step) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const Fragments a = load_matrices(weights + m * 8 * kBoxRowBytes +
                                          (((column + step * 2 + lane_ / 16) ^ row) << 4));
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          mma_16816<Element>(sums.at[group][m], a.at, b[group].at[step * 2],
                             b[group].at[step * 2 + 1]);
        }
      }
    }
  }

  // Every lane says so for itself: then racecheck, too, knows that they have all read the stage.
  __device__ void give_back() {
    arrive(&shared_.empty[at_.stage]);
    at_.advance();
  }

  // Brings the warps' sums of a group together; all have read those before when they pass the first
  // barrier.
  __device__ void meet(const Sums& sums, std::uint32_t group) const {
    float4* mine = reinterpret_cast<float4*>(shared_.sums) + warp_ * kMatrices * 32 + lane_;
    barrier();
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      const float* from = sums.at[group][m];
      mine[m * 32] = make_float4(from[0], from[1], from[2], from[3]);
    }
    barrier();
  }

  // The whole sum of a row of weights of one of the runs and one of the group's columns: warp by
  // warp.
  __device__ float sum_of(std::uint32_t run, std::uint32_t row, std::uint32_t column) const {
    const float* words =
        shared_.sums + row / 8 * 128 + (row % 8 * 4 + column / 2) * 4 + run * 2 + column % 2;
    float sum = 0.0F;
#pragma unroll
    for (std::uint32_t warp = 0; warp < kConsumers; ++warp) sum += words[warp * kMatrices * 128];
    return sum;
  }

  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<Ring::kStages> at_;
};

// The plan, by the whole block. `scratch`: of the sort, in the ring.
__device__ __forceinline__ void make_plan(const StreamArgs& args, const Shared& shared,
                                          std::uint32_t* scratch, std::uint32_t* order) {
  const std::uint32_t num_experts = args.routing.num_experts;
  if (args.routing.num_pairs <= 32) {
    if (threadIdx.x < 32) plan_few(*shared.plan, args.routing, args.cut, order);
    return;
  }
  if (args.sorted.order == nullptr) {
    PairSort{args.routing, 0, args.routing.num_pairs, scratch, shared.plan->starts, order, nullptr}
        .run();
  } else {
    for (std::uint32_t i = threadIdx.x; i <= num_experts; i += kThreads) {
      shared.plan->starts[i] = __ldcg(args.sorted.starts + i);
    }
    __syncthreads();
  }
  if (threadIdx.x < 32) list_tiles(*shared.plan, num_experts, args.cut);
}

// A block's shared memory, cut, with its barriers and its plan made. Weights of pairs in the order
// of their numbers, where there are any.
template <typename Ring>
__device__ __forceinline__ Shared prepare_block(const StreamArgs& args, unsigned char* dynamic) {
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ float scale[kMaxFewRows];
  __shared__ float pair_weights[kMaxBlockPairs];
  __shared__ uint4 zeros;
  const std::uint32_t base = shared_address(dynamic);
  unsigned char* at =
      dynamic + (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment - base;
  unsigned char* rows = at + Ring::kStages * Ring::kWeightBytes;
  unsigned char* sums = rows + Ring::kStages * Ring::kRows * Ring::kRowBytes;
  auto* order = reinterpret_cast<std::uint32_t*>(sums + Ring::kSumBytes);
  Shared shared;
  shared.full = full;
  shared.empty = empty;
  shared.weights = shared_address(at);
  shared.rows = shared_address(rows);
  shared.zeros = shared_address(&zeros);
  shared.sums = reinterpret_cast<float*>(sums);
  shared.scale = scale;
  shared.pair_weights = pair_weights;
  shared.plan = reinterpret_cast<Plan*>(order + kMaxBlockPairs);
  shared.order = args.sorted.order == nullptr ? order : args.sorted.order;
  if (threadIdx.x == kConsumerThreads) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumerThreads);
    }
    fence_barrier_init();
    prefetch_map(&args.weight_map);
    zeros = {0, 0, 0, 0};
  }
  if (!args.routed) wait_for_previous();
  if (args.pair_weights != nullptr) {
    for (std::uint32_t i = threadIdx.x; i < args.routing.num_pairs; i += kThreads) {
      pair_weights[i] = __ldcg(args.pair_weights + i);
    }
  }
  make_plan(args, shared, reinterpret_cast<std::uint32_t*>(at), order);
  fence_async_proxy();  // the ring was the sort's scratch
  __syncthreads();
  return shared;
}

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::experts
