// How the kernel of linear_few_rows.cu cuts a weight matrix into boxes, gives them to blocks, and
// streams them through shared memory.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda::boxes {

constexpr std::uint32_t kCluster = 8;  // blocks that share a tile
constexpr std::uint32_t kBoxRowBytes = 128;
constexpr std::uint32_t kWeightBytes = kTileRows * kBoxRowBytes;  // of a box
constexpr std::uint32_t kGroupRows = 64;                          // of a warpgroup's products
constexpr std::uint32_t kConsumers = kTileRows / 16;              // warps
constexpr std::uint32_t kConsumerThreads = kConsumers * 32;
constexpr std::uint32_t kThreads = kConsumerThreads + 32;
static_assert(kConsumers == kCluster);  // each block finishes the outputs of one warp of all

// More than half of an SM's shared memory, so that two blocks never share an SM while another has
// none; the rest is left to the kernels between two products, which may start early. (Two blocks an
// SM, one finishing while the next fills its ring, measured slower: the rings are too small then
// for what lies between two products.)
constexpr std::uint32_t kRingAndSumsBytes = 222 * 1024;
constexpr std::uint32_t kSwizzleAlignment = 1024;

template <int kTokens>
struct Ring {
  static constexpr std::uint32_t kInputBytes = kTokens * kBoxRowBytes;
  static constexpr std::uint32_t kStageBytes = kWeightBytes + kInputBytes;
  // A place for a warp's sums from each block; there are two.
  static constexpr std::uint32_t kPlaceBytes = kCluster * (kTokens / 8) * 32 * sizeof(float4);
  static constexpr std::uint32_t kStages = (kRingAndSumsBytes - 2 * kPlaceBytes) / kStageBytes;
  static constexpr std::uint32_t kSharedBytes =
      kStages * kStageBytes + 2 * kPlaceBytes + kSwizzleAlignment;
  static_assert(kStages > 1);  // a stage is given back when the next has begun
};

struct FewRowsArgs {
  CUtensorMap weight_map;
  CUtensorMap input_map;
  EpilogueArgs epilogue;
  // A tile has 128 neighbouring rows; of Gate 64 outputs' pairs, 8 rows of gate before the 8 of up,
  // so that a thread, which has the sums of rows r and r + 8, has both.
  std::uint32_t outputs_per_tile;
  std::uint32_t boxes_per_tile;
  std::uint32_t num_tiles;
  float* next_square_sums;
  std::uint32_t num_next_sums;  // of a row
};

#ifdef INFERNO_SM90A

// Tiles of a cluster, and this block's share of the boxes of each.
class Tiles {
 public:
  __device__ explicit Tiles(const FewRowsArgs& args)
      : step_(gridDim.x / kCluster),
        end_(args.num_tiles),
        tile_(blockIdx.x / kCluster),
        first_box_(args.boxes_per_tile * cluster_rank() / kCluster),
        end_box_(args.boxes_per_tile * (cluster_rank() + 1) / kCluster) {}

  __device__ bool exists() const { return tile_ < end_; }
  __device__ void advance() { tile_ += step_; }
  __device__ std::uint32_t tile() const { return tile_; }
  __device__ std::uint32_t first_box() const { return first_box_; }
  __device__ std::uint32_t num_boxes() const { return end_box_ - first_box_; }

 private:
  std::uint32_t step_;
  std::uint32_t end_;
  std::uint32_t tile_;
  std::uint32_t first_box_;
  std::uint32_t end_box_;
};

// The same, box by box.
class BoxWalk {
 public:
  __device__ explicit BoxWalk(const FewRowsArgs& args) : tiles_(args) {}
  __device__ bool exists() const { return tiles_.exists() && tiles_.num_boxes() > 0; }
  __device__ void advance() {
    if (++box_ < tiles_.num_boxes()) return;
    box_ = 0;
    tiles_.advance();
  }
  __device__ std::uint32_t tile() const { return tiles_.tile(); }
  __device__ std::uint32_t column() const { return (tiles_.first_box() + box_) * kBoxColumns; }

 private:
  Tiles tiles_;
  std::uint32_t box_ = 0;
};

struct Shared {
  std::uint64_t* full;    // [kStages] weights and input have come
  std::uint64_t* empty;   // [kStages] all consumers have read them
  std::uint64_t* handed;  // [2] the sums of all blocks have come
  std::uint32_t ring;     // address
  float4* sums;           // [2, kCluster, kTokens / 8, 32]
  float* scale;           // [kCallRows] of a token's row
};

template <int kTokens>
class Producer {
 public:
  __device__ Producer(const FewRowsArgs& args, const Shared& shared)
      : args_(args), shared_(shared), policy_(evict_first_policy()), keep_(evict_last_policy()) {}

  // By one thread.
  __device__ void run() const {
    BoxWalk weights(args_);
    BoxWalk inputs(args_);
    std::uint32_t filled = 0;
    for (; filled < kStages && weights.exists(); weights.advance()) {
      copy_weights(filled++, weights);
    }
    wait_for_previous();
    for (std::uint32_t stage = 0; stage < filled; ++stage, inputs.advance()) {
      copy_input(stage, inputs);
    }
    RingPosition<kStages> at;
    for (; weights.exists(); weights.advance()) {
      wait_barrier(&shared_.empty[at.stage], at.parity);
      copy_weights(at.stage, weights);
      copy_input(at.stage, weights);
      at.advance();
    }
  }

 private:
  using Ring = boxes::Ring<kTokens>;
  static constexpr std::uint32_t kStages = Ring::kStages;

  __device__ void copy_weights(std::uint32_t stage, const BoxWalk& walk) const {
    std::uint64_t* full = &shared_.full[stage];
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes;
    const std::uint32_t output = walk.tile() * args_.outputs_per_tile;
    arrive_expecting(full, Ring::kStageBytes);
    if (args_.epilogue.kind == Epilogue::Gate) {
      copy_paired_box(to, &args_.weight_map, {walk.column(), output / kPairRows}, full, policy_);
    } else {
      copy_box(to, &args_.weight_map, {walk.column(), output}, full, policy_);
    }
  }

  __device__ void copy_input(std::uint32_t stage, const BoxWalk& walk) const {
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + kWeightBytes;
    copy_box(to, &args_.input_map, {walk.column(), 0}, &shared_.full[stage], keep_);
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint64_t policy_;
  std::uint64_t keep_;
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::boxes
