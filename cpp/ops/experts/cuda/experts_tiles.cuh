// How the kernel of experts_tiles.cu brings both factors of its tiles through shared memory.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"
#include "ops/experts/cuda/experts_plan.cuh"

namespace inferno::ops::cuda::experts {

constexpr std::uint32_t kRows = 128;  // of x, in a tile
constexpr std::uint32_t kGroupRows = 64;
constexpr std::uint32_t kFewRows = 8;  // of a small box
// Threads of a block: warps that multiply, one that brings, and those that fetch rows of tokens.
constexpr std::uint32_t kWarps = 8;
constexpr std::uint32_t kProducer = kWarps * 32;
constexpr std::uint32_t kGatherers = kProducer + 32;
constexpr std::uint32_t kNumGatherers = 96;
template <bool kGathers>
constexpr std::uint32_t kBlockThreads = kGatherers + (kGathers ? kNumGatherers : 0);
constexpr std::uint32_t kRowBytes = 128;
constexpr std::uint32_t kGroupBytes = kGroupRows * kRowBytes;
constexpr std::uint32_t kInputBytes = kRows * kRowBytes;
constexpr std::uint32_t kRingAlignment = 1024;
constexpr std::uint32_t kMostSharedBytes = 220 * 1024;

// kRunRows: of weights, twice in a tile.
template <int kRunRows>
struct TilesRing {
  static constexpr std::uint32_t kRunBytes = kRunRows * kRowBytes;
  static constexpr std::uint32_t kStageBytes = kInputBytes + 2 * kRunBytes;
  static constexpr std::uint32_t kStages = (kMostSharedBytes - kRingAlignment) / kStageBytes;
  static constexpr std::uint32_t kSharedBytes = kStages * kStageBytes + kRingAlignment;
  static constexpr int kSums = kRunRows / 2;  // of a thread and a run
};

struct TilesArgs {
  CUtensorMap weight_map;  // boxes of kRunRows rows
  CUtensorMap input_map;   // boxes of kGroupRows rows, where x has sorted rows
  CUtensorMap few_map;     // boxes of kFewRows rows
  const void* x;           // [T, K] of tokens, or [P, K] sorted
  std::uint32_t num_experts;
  std::uint32_t experts_per_token;
  SortedPairs sorted;
  Cut cut;
  std::uint32_t outputs_per_tile;
  std::uint32_t second_run;
  std::uint32_t num_columns;  // K
  std::uint32_t num_outputs;
  Activation activation;
  const float* bias;         // [E, rows of the matrix] or null
  const float* square_sums;  // [T, num_square_sums] or null
  std::uint32_t num_square_sums;
  float eps;
  bool routed;
  void* out;
};

#ifdef INFERNO_SM90A

struct TilesShared {
  std::uint64_t* full;   // [kStages]
  std::uint64_t* empty;  // [kStages]
  std::uint32_t ring;    // address
  const Plan* plan;
};

// By one thread: weights, and where x has sorted rows these. Where the routing was there before,
// weights do not wait for the end of the kernel before this one, as rows of x do.
template <int kRunRows, bool kGathers>
class TilesProducer {
 public:
  __device__ TilesProducer(const TilesArgs& args, const TilesShared& shared)
      : args_(args), shared_(shared), keep_(evict_last_policy()) {}

  __device__ void run() const {
    RingPosition<Ring::kStages> at;
    std::uint32_t filled = 0;
    bool waited = false;
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
        if (filled >= Ring::kStages) wait_barrier(&shared_.empty[at.stage], at.parity ^ 1);
        copy_weights(at.stage, tile, column);
        if constexpr (!kGathers) {
          if (!waited) wait_for_previous();
          waited = true;
          copy_rows(at.stage, tile, column);
        }
        ++filled;
        at.advance();
      }
    }
    let_next_start();
  }

 private:
  using Ring = TilesRing<kRunRows>;

  // A few rows come eight by eight, more by halves of a tile.
  __device__ static std::uint32_t box_rows(const TileWalk& tile) {
    return tile.num_rows() <= kGroupRows / 2 ? kFewRows : kGroupRows;
  }
  __device__ static std::uint32_t num_boxes(const TileWalk& tile) {
    return quotient_up(tile.num_rows(), box_rows(tile));
  }

  __device__ void copy_rows(std::uint32_t stage, const TileWalk& tile, std::uint32_t column) const {
    const std::uint32_t rows = box_rows(tile);
    const CUtensorMap* map = rows == kFewRows ? &args_.few_map : &args_.input_map;
    for (std::uint32_t box = 0; box < num_boxes(tile); ++box) {
      copy_box(shared_.ring + stage * Ring::kStageBytes + box * rows * kRowBytes, map,
               {column, tile.first_row() + box * rows}, &shared_.full[stage], keep_);
    }
  }

  __device__ void copy_weights(std::uint32_t stage, const TileWalk& tile,
                               std::uint32_t column) const {
    std::uint64_t* full = &shared_.full[stage];
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + kInputBytes;
    const uint3 from{tile.column_tile() * args_.outputs_per_tile, column / kBoxColumns,
                     tile.expert()};
    const uint3 second{from.x + args_.second_run, from.y, from.z};
    const std::uint32_t row_bytes = kGathers ? 0 : num_boxes(tile) * box_rows(tile) * kRowBytes;
    arrive_expecting(full, 2 * Ring::kRunBytes + row_bytes);
    copy_stack_boxes(to, &args_.weight_map, from, full);
    copy_stack_boxes(to + Ring::kRunBytes, &args_.weight_map, second, full);
  }

  const TilesArgs& args_;
  const TilesShared& shared_;
  std::uint64_t keep_;
};

// By kNumGatherers threads: rows of tokens, each from wherever it is, laid out as the copy engine
// does it. Eight neighbours fetch the eight 16-byte chunks of a row's 64 columns.
template <int kRunRows>
class TilesGatherer {
 public:
  __device__ TilesGatherer(const TilesArgs& args, const TilesShared& shared)
      : args_(args),
        shared_(shared),
        chunk_((threadIdx.x - kGatherers) % 8),
        first_((threadIdx.x - kGatherers) / 8) {}

  __device__ void run() const {
    wait_for_previous();
    RingPosition<Ring::kStages> at;
    std::uint32_t filled = 0;
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      const uint4* rows[kRowsEach];
#pragma unroll
      for (std::uint32_t i = 0; i < kRowsEach; ++i) rows[i] = row_of(tile, first_ + i * kStride);
      for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
        if (filled >= Ring::kStages) wait_barrier(&shared_.empty[at.stage], at.parity ^ 1);
        const std::uint32_t stage = shared_.ring + at.stage * Ring::kStageBytes;
#pragma unroll
        for (std::uint32_t i = 0; i < kRowsEach; ++i) {
          const std::uint32_t row = first_ + i * kStride;
          if (row >= tile.num_rows()) break;
          copy_16(stage + row * kRowBytes + (chunk_ ^ row % 8) * 16, rows[i] + column / 8);
        }
        arrive_when_copied(&shared_.full[at.stage]);
        ++filled;
        at.advance();
      }
    }
  }

 private:
  using Ring = TilesRing<kRunRows>;
  static constexpr std::uint32_t kStride = kNumGatherers / 8;
  static constexpr std::uint32_t kRowsEach = (kRows + kStride - 1) / kStride;

  __device__ const uint4* row_of(const TileWalk& tile, std::uint32_t row) const {
    const std::uint32_t pair = args_.sorted.order[tile.first_row() + min(row, tile.num_rows() - 1)];
    const std::size_t token = pair / args_.experts_per_token;
    return static_cast<const uint4*>(args_.x) + token * (args_.num_columns / 8) + chunk_;
  }

  const TilesArgs& args_;
  const TilesShared& shared_;
  std::uint32_t chunk_;
  std::uint32_t first_;
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::experts
