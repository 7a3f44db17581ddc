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
constexpr std::uint32_t kBoxes = 4;  // of 64 columns, in a stage
constexpr std::uint32_t kStageColumns = kBoxes * kBoxColumns;
constexpr std::uint32_t kWarpColumns = kStageColumns / kConsumers;
// Two blocks fit a multiprocessor: the next kernel's ring fills while this one's empties.
constexpr std::uint32_t kSharedBytes = 110 * 1024;
constexpr std::uint32_t kSwizzleAlignment = 1024;

// kMatrices: of 16 rows of weights, in a tile: two runs, of a gate the same outputs' gate and up,
// else neighbours, of which a matrix takes 8 rows each. kGroups: of 8 rows of x.
template <int kMatrices, int kGroups>
struct Ring {
  static constexpr std::uint32_t kRunRows = kMatrices * 8;
  static constexpr std::uint32_t kRunBytes = kRunRows * kBoxRowBytes;  // of a box
  static constexpr std::uint32_t kWeightBytes = 2 * kBoxes * kRunBytes;
  static constexpr std::uint32_t kRows = kGroups * 8;
  // The 16 bytes between two rows put the same column of 8 rows into different banks.
  static constexpr std::uint32_t kRowBytes = kStageColumns * 2 + 16;
  static constexpr std::uint32_t kSumBytes = kConsumers * kMatrices * 128 * 4;
  static constexpr std::uint32_t kStages =
      (kSharedBytes - kSwizzleAlignment - kSumBytes - sizeof(Plan) - kMaxBlockPairs * 4) /
      (kWeightBytes + kRows * kRowBytes);
  static_assert(kStages > 1);
  static_assert(kStages * kWeightBytes >= kThreads / 32 * kMaxExperts * 4);  // the sort's scratch
};

struct StreamArgs {
  CUtensorMap weight_map;  // boxes of kRunRows rows, kBoxes side by side
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
  float* scale;           // [kMaxFewRows] of a token's row
  Plan* plan;
  const std::uint32_t* order;  // [P]
};

// Stages of tiles, one after the other.
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
  __device__ const TileWalk& tile() const { return tiles_; }
  __device__ std::uint32_t column() const { return column_; }
  __device__ std::uint32_t row_bytes() const {
    return min(num_columns_ - column_, kStageColumns) * 2;
  }

 private:
  TileWalk tiles_;
  std::uint32_t num_columns_;
  std::uint32_t column_ = 0;
};

// One warp: all stages of all tiles of this block.
template <int kMatrices, int kGroups>
class Producer {
 public:
  __device__ Producer(const StreamArgs& args, const Shared& shared)
      : args_(args), shared_(shared), lane_(threadIdx.x % 32), policy_(evict_first_policy()) {}

  __device__ void run() const {
    StageWalk weights(args_, shared_);
    StageWalk rows(args_, shared_);
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
  using Ring = experts::Ring<kMatrices, kGroups>;
  static constexpr std::uint32_t kStages = Ring::kStages;

  __device__ void copy_weights(std::uint32_t stage, const StageWalk& walk) const {
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

  __device__ void copy_rows(std::uint32_t stage, const StageWalk& walk) const {
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

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::experts
