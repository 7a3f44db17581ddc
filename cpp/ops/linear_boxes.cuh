// How the kernel of linear_few_rows.cu cuts a weight matrix into boxes, gives them to blocks, and
// streams them through shared memory.
#pragma once

#include "ops/hopper.cuh"
#include "ops/linear_epilogue.cuh"
#include "ops/tensor_map.h"

namespace inferno::ops::cuda::boxes {

constexpr std::uint32_t kHalfRows = kTileRows / 2;  // two boxes make a stage: see FewRowsArgs
constexpr std::uint32_t kBoxRowBytes = 128;
constexpr std::uint32_t kHalfBytes = kHalfRows * kBoxRowBytes;
constexpr std::uint32_t kConsumers = kHalfRows / 8;  // warps
constexpr std::uint32_t kConsumerThreads = kConsumers * 32;
constexpr std::uint32_t kThreads = kConsumerThreads + 32;
constexpr std::uint32_t kMaxBlocks = 256;
constexpr std::uint32_t kPartials = kTileRows * kCallRows;  // of a block

// More than half of an SM's shared memory, so that two blocks never share an SM while another has
// none; the rest is left to the kernels between two products, which may start early. (Two blocks an
// SM, one finishing while the next fills its ring, measured slower: the rings are too small then
// for what lies between two products.)
constexpr std::uint32_t kRingBytes = 222 * 1024;
constexpr std::uint32_t kSwizzleAlignment = 1024;

template <int kTokens>
struct Ring {
  static constexpr std::uint32_t kInputBytes = kTokens * kBoxRowBytes;
  static constexpr std::uint32_t kStageBytes = 2 * kHalfBytes + kInputBytes;
  static constexpr std::uint32_t kStages = kRingBytes / kStageBytes;
  static constexpr std::uint32_t kSharedBytes = kStages * kStageBytes + kSwizzleAlignment;
};

struct FewRowsArgs {
  CUtensorMap weight_map;
  CUtensorMap input_map;
  EpilogueArgs epilogue;
  // A tile's rows are two runs of 64: of Gate the same outputs' gate and up, else neighbours. An
  // mma takes 8 rows of each, so that a thread has the sums of a pair.
  std::uint32_t rows_per_tile;  // by which the first run advances
  std::uint32_t second_run;     // its distance from the first
  std::uint32_t boxes_per_tile;
  std::uint32_t num_boxes;
  float* next_square_sums;
  std::uint32_t num_next_sums;  // of a row
  float4* partials;             // [blocks, kPartials / 4], zero but for what is on its way
};

#ifdef INFERNO_SM90

// The part of a tile that lies in a block's run of boxes.
struct Segment {
  std::uint32_t tile;
  std::uint32_t first_box;  // within the tile
  std::uint32_t end_box;
};

// A block's run of boxes, given out tile by tile from its end.
class Run {
 public:
  __device__ explicit Run(const FewRowsArgs& args)
      : boxes_per_tile_(args.boxes_per_tile),
        begin_(border(args, blockIdx.x)),
        end_(border(args, blockIdx.x + 1)) {}

  __device__ bool next(Segment& segment) {
    if (end_ == begin_) return false;
    segment.tile = (end_ - 1) / boxes_per_tile_;
    const std::uint32_t first = segment.tile * boxes_per_tile_;
    segment.first_box = max(begin_, first) - first;
    segment.end_box = end_ - first;
    end_ = first + segment.first_box;
    return true;
  }

  // The block which has this box.
  __device__ static std::uint32_t block_of(const FewRowsArgs& args, std::uint32_t box) {
    return ((std::uint64_t{box} + 1) * gridDim.x - 1) / args.num_boxes;
  }

 private:
  __device__ static std::uint32_t border(const FewRowsArgs& args, std::uint32_t block) {
    return std::uint64_t{args.num_boxes} * block / gridDim.x;
  }

  std::uint32_t boxes_per_tile_;
  std::uint32_t begin_;
  std::uint32_t end_;
};

// The same, box by box.
class BoxWalk {
 public:
  __device__ explicit BoxWalk(const FewRowsArgs& args) : run_(args) {}
  __device__ bool next() {
    if (++box_ < segment_.end_box) return true;
    if (!run_.next(segment_)) return false;
    box_ = segment_.first_box;
    return true;
  }
  __device__ std::uint32_t tile() const { return segment_.tile; }
  __device__ std::uint32_t column() const { return box_ * kBoxColumns; }

 private:
  Run run_;
  Segment segment_{};
  std::uint32_t box_ = 0;
};

struct Shared {
  std::uint64_t* full;   // [kStages] weights and input have come
  std::uint64_t* empty;  // [kStages] all consumers have read them
  std::uint32_t ring;    // address
  float* scale;          // [kCallRows] of a token's row
  float* squares;        // [kConsumers, kCallRows]
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
    while (filled < kStages && weights.next()) copy_weights(filled++, weights);
    wait_for_previous();
    for (std::uint32_t stage = 0; stage < filled && inputs.next(); ++stage) {
      copy_input(stage, inputs);
    }
    RingPosition<kStages> at;
    while (weights.next()) {
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
    const std::uint32_t row = walk.tile() * args_.rows_per_tile;
    arrive_expecting(full, Ring::kStageBytes);
    copy_box(to, &args_.weight_map, walk.column(), row, full, policy_);
    copy_box(to + kHalfBytes, &args_.weight_map, walk.column(), row + args_.second_run, full,
             policy_);
  }

  __device__ void copy_input(std::uint32_t stage, const BoxWalk& walk) const {
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + 2 * kHalfBytes;
    copy_box(to, &args_.input_map, walk.column(), 0, &shared_.full[stage], keep_);
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint64_t policy_;
  std::uint64_t keep_;
};

#endif  // INFERNO_SM90

}  // namespace inferno::ops::cuda::boxes
