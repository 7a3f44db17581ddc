// How the kernel of linear_decode.cu streams whole tiles through shared memory.
#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda::tiles {

constexpr std::uint32_t kTokens = kMaxDecodeRows;  // columns of an mma
constexpr std::uint32_t kConsumers = 8;            // warps
constexpr std::uint32_t kConsumerThreads = kConsumers * 32;
constexpr std::uint32_t kThreads = kConsumerThreads + 32;
constexpr std::uint32_t kBoxRowBytes = 128;
constexpr std::uint32_t kSharedBytes = 108 * 1024;
// Of a weight matrix: about two tiles a block. For larger ones the input, which comes again with
// every tile, costs more than is saved between two products.
constexpr std::uint64_t kMostBytes = 40 << 20;
constexpr std::uint32_t kSwizzleAlignment = 1024;

// kMatrices: of 16 rows, in a tile. A tile's rows are two runs: of Gate the same outputs' gate and
// up, else neighbours. A matrix takes 8 rows of each.
template <int kMatrices>
struct Ring {
  static constexpr std::uint32_t kRunRows = kMatrices * 8;
  static constexpr std::uint32_t kBoxes = kMatrices == 1 ? 4 : 2;  // of 64 columns, in a stage
  static constexpr std::uint32_t kColumns = kBoxes * kBoxColumns;
  static constexpr std::uint32_t kSteps = kColumns / 16 / kConsumers;  // mmas of a warp
  static constexpr std::uint32_t kRunBytes = kRunRows * kBoxRowBytes;  // of a box
  static constexpr std::uint32_t kWeightBytes = 2 * kBoxes * kRunBytes;
  static constexpr std::uint32_t kInputBytes = kTokens * kBoxRowBytes;  // of a box
  static constexpr std::uint32_t kStageBytes = kWeightBytes + kBoxes * kInputBytes;
  static constexpr std::uint32_t kSumWords = kConsumers * kMatrices * 128;
  static constexpr std::uint32_t kStages =
      (kSharedBytes - kSwizzleAlignment - kSumWords * 4) / kStageBytes;
  // Outputs of a tile that a thread finishes.
  static constexpr std::uint32_t kOutputs =
      (kMatrices * 16 * kTokens + kConsumerThreads - 1) / kConsumerThreads;
};

struct DecodeArgs {
  CUtensorMap weight_map;
  CUtensorMap input_map;
  EpilogueArgs epilogue;
  std::uint32_t rows_per_tile;  // by which the first run advances
  std::uint32_t second_run;     // its distance from the first
  std::uint32_t stages_per_tile;
  std::uint32_t num_tiles;
  float* next_square_sums;
  std::uint32_t num_next_sums;  // of a row
};

#ifdef INFERNO_SM90

struct Shared {
  std::uint64_t* full;   // [kStages] weights and input have come
  std::uint64_t* empty;  // [kStages] all consumers have read them
  std::uint32_t ring;    // address
  float* scale;          // [kTokens] of a token's row
  float* sums;           // [kConsumers, kMatrices, 128]
};

// By one thread: all stages of all tiles of this block.
template <int kMatrices>
class Producer {
 public:
  __device__ Producer(const DecodeArgs& args, const Shared& shared)
      : args_(args), shared_(shared), weight_policy_(evict_first_policy()) {}

  __device__ void run() {
    const std::uint32_t tiles = (args_.num_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
    const std::uint32_t total = tiles * args_.stages_per_tile;
    const std::uint32_t ahead = min(total, Ring::kStages);
    for (std::uint32_t i = 0; i < ahead; ++i) copy_weights(i, i);
    if (ahead == total) let_next_start();
    wait_for_previous();
    for (std::uint32_t i = 0; i < ahead; ++i) copy_input(i, i);
    RingPosition<Ring::kStages> at;
    for (std::uint32_t i = ahead; i < total; ++i) {
      wait_barrier(&shared_.empty[at.stage], at.parity);
      copy_weights(at.stage, i);
      copy_input(at.stage, i);
      if (i + 1 == total) let_next_start();
      at.advance();
    }
  }

 private:
  using Ring = tiles::Ring<kMatrices>;

  __device__ void copy_weights(std::uint32_t stage, std::uint32_t index) const {
    std::uint64_t* full = &shared_.full[stage];
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes;
    const std::uint32_t tile = blockIdx.x + index / args_.stages_per_tile * gridDim.x;
    const std::uint32_t box = index % args_.stages_per_tile * Ring::kBoxes;
    const std::uint32_t row = tile * args_.rows_per_tile;
    arrive_expecting(full, Ring::kStageBytes);
    copy_boxes(to, &args_.weight_map, {row, box}, full, weight_policy_);
    copy_boxes(to + Ring::kWeightBytes / 2, &args_.weight_map, {row + args_.second_run, box}, full,
               weight_policy_);
  }

  __device__ void copy_input(std::uint32_t stage, std::uint32_t index) const {
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + Ring::kWeightBytes;
    const std::uint32_t box = index % args_.stages_per_tile * Ring::kBoxes;
    copy_boxes(to, &args_.input_map, {0, box}, &shared_.full[stage], evict_last_policy());
  }

  const DecodeArgs& args_;
  const Shared& shared_;
  std::uint64_t weight_policy_;
};

#endif  // INFERNO_SM90

}  // namespace inferno::ops::cuda::tiles
