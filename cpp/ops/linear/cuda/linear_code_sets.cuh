// What the kernels for few rows of quantized matrices share: linear_boxes.cuh's boxes, of 16 strips
// of a span each (code_layout.h), of which a warp has two; sets of warps, which take boxes by turns
// and whose sums meet at the end of a tile; the scale words of a warp's rows.
#pragma once

#include <span>

#include "ops/linear/cuda/linear_handover.cuh"
#include "ops/linear/cuda/weight_codes.cuh"

namespace inferno::ops::cuda::codes {

using namespace boxes;

constexpr std::uint32_t kSpanSteps = kSpanColumns / 16;
constexpr std::uint32_t kTileStrips = kTileRows / kStripRows;
constexpr std::uint32_t kWarpStrips = kWarpRows / kStripRows;

// kGroupSteps: steps of 16 columns that are summed before they are scaled, which divide a group.
template <WeightKind kKindOf, std::uint32_t kGroupStepsOf, bool kOffsetsOf = false>
struct Codes {
  static constexpr WeightKind kKind = kKindOf;
  static constexpr bool kOffsets = kOffsetsOf;
  static constexpr std::uint32_t kGroupSteps = kGroupStepsOf;
  static constexpr std::uint32_t kGroups = kSpanSteps / kGroupSteps;  // of a span
  static constexpr std::uint32_t kCodeBytes = kStripRows * kSpanColumns * weight_bits(kKind) / 8;
  static constexpr std::uint32_t kMaxSpanBytes = kCodeBytes + kGroups * kStripRows * kScaleBytes;
};

#ifdef INFERNO_SM90A

// Copies the strips of a tile's box.
template <typename Walk>
__device__ __forceinline__ void copy_code_box(const FewRowsArgs& args, const Walk& walk,
                                              std::uint32_t to, std::uint64_t* full,
                                              std::uint64_t policy) {
  const bool gate = args.epilogue.kind == Epilogue::Gate;
  const std::uint32_t strip = first_output(args, walk.tile(), 0) / kStripRows;
  if (args.codes.row_major) {
    const std::uint32_t column = walk.box() * kBoxColumns;
    if (gate) {
      copy_paired_box(to, &args.weight_map, {column, strip}, full, policy);
    } else {
      copy_box(to, &args.weight_map, {column, strip * kStripRows}, full, policy);
    }
  } else if (gate) {
    copy_stack_boxes(to, &args.weight_map, {walk.box(), 0, strip}, full, policy);
  } else {
    copy_boxes(to, &args.weight_map, {walk.box(), strip}, full, policy);
  }
}

#endif  // INFERNO_SM90A

// Two, so that one makes multiplicands of codes while the other's products are under way; of more
// tokens a thread's sums leave no registers for it.
constexpr std::uint32_t sets_for(int tokens) { return tokens <= 32 ? 2 : 1; }

// kKeptBytes of shared memory: where a block keeps its columns of the input, which then do not come
// through the ring.
template <typename CodesOf, int kTokensOf, std::uint32_t kKeptBytesOf,
          std::uint32_t kSetsOf = sets_for(kTokensOf)>
struct CodeStage {
  static constexpr int kTokens = kTokensOf;
  static constexpr std::uint32_t kSets = kSetsOf;
  static constexpr std::uint32_t kFinishers = kTokens <= 32 ? kTokens / 8 : 0;
  static constexpr std::uint32_t kPlaces = kFinishers > 0 ? 4 : 2;
  static constexpr std::uint32_t kColumns = kSpanColumns;
  static constexpr std::uint32_t kKeptBytes = kKeptBytesOf;
  static constexpr std::uint32_t kWeightBytes =
      (kTileStrips * CodesOf::kMaxSpanBytes + kSwizzleAlignment - 1) / kSwizzleAlignment *
      kSwizzleAlignment;

#ifdef INFERNO_SM90A
  __device__ static std::uint32_t weight_bytes(const FewRowsArgs& args) {
    return args.warps_per_tile * kWarpStrips * args.codes.span_bytes;
  }
  __device__ static void copy_weights(const FewRowsArgs& args, const BoxWalk& walk,
                                      std::uint32_t to, std::uint64_t* full, std::uint64_t policy) {
    copy_code_box(args, walk, to, full, policy);
  }
#endif
};

#ifdef INFERNO_SM90A

// By all warps but the one that streams. Products(args, shared, warp) is of a warp; its start() is
// called once, begin(tile) before a tile, and multiply(stage, box, empty, sums) of each box of its
// set, which is the box-th of the block's; it arrives at `empty` when it has read the stage. With
// kTwoAtOnce, begin_box and end_box are its two halves, and a warpgroup's products end in between.
template <typename Products, typename Element, typename Stage>
class Sets {
 public:
  __device__ Sets(const FewRowsArgs& args, const Shared& shared)
      : args_(args),
        shared_(shared),
        set_(uniform(threadIdx.x / kConsumerThreads)),
        warp_(uniform(threadIdx.x / 32 % kConsumers)),
        lane_(threadIdx.x % 32),
        full_(shared_pointer<std::uint64_t>(opaque(shared_address(shared.full)))),
        empty_(shared_pointer<std::uint64_t>(opaque(shared_address(shared.empty)))),
        handover_(args, shared, warp_),
        products_(args, shared, warp_) {
    at_.advance(set_);
  }

  __device__ void run() {
    if constexpr (Stage::kFinishers > 0) {
      if (set_ == kSets) return handover_.finish_tiles();
    }
    products_.start();
    if (set_ > 0) return help();
    const auto sum_tile = [this](const Tiles& tiles, float(&sums)[kCount]) {
      if constexpr (kSets == 1) {
        sum_all(tiles, sums);
      } else {
        sum(tiles, sums);
        join(sums);
      }
    };
    if constexpr (Stage::kFinishers > 0) {
      handover_.send_tiles(sum_tile);
    } else {
      handover_.run(sum_tile);
    }
  }

 private:
  using Ring = boxes::Ring<Stage>;
  static_assert(Ring::kStages >= 2 * Stage::kSets);  // a set is ahead of another by that much
  static constexpr std::uint32_t kSets = Stage::kSets;
  static constexpr int kTokens = Stage::kTokens;
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr int kCount = kTokens / 2;             // sums of a thread
  static constexpr std::uint32_t kSumsAreThere = 2;      // barriers
  static constexpr std::uint32_t kPlaceIsFree = 3;

  // The second set's sums of each tile go to the first.
  __device__ void help() {
    bool waits = false;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance()) {
      Sums<kTokens> sums{};
      sum(tiles, sums.all);
      if (waits) named_sync<kSets * kConsumerThreads>(kPlaceIsFree);
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) *place(group) = sums.of(group);
      named_arrive<kSets * kConsumerThreads>(kSumsAreThere);
      waits = true;
    }
    if (waits) named_sync<kSets * kConsumerThreads>(kPlaceIsFree);
  }

  // One set alone sums in the same order as two.
  __device__ void sum_all(const Tiles& tiles, float (&sums)[kCount]) {
    products_.begin(tiles.tile());
    float second[kCount] = {};
    std::uint32_t box = 0;
    for (; box + 1 < tiles.num_boxes(); box += 2) multiply_two(box, sums, second);
    if (box < tiles.num_boxes()) {
      multiply(box, sums);
      at_.advance();
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += second[i];
  }

  __device__ void join(float (&sums)[kCount]) const {
    named_sync<kSets * kConsumerThreads>(kSumsAreThere);
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const float4 part = *place(group);
      sums[group * 4] += part.x;
      sums[group * 4 + 1] += part.y;
      sums[group * 4 + 2] += part.z;
      sums[group * 4 + 3] += part.w;
    }
    named_arrive<kSets * kConsumerThreads>(kPlaceIsFree);
  }

  // Behind those that other blocks write to.
  __device__ float4* place(std::uint32_t group) const {
    return shared_.sums + Stage::kPlaces * Places<kTokens>::kBytes / sizeof(float4) +
           (warp_ * kGroups + group) * 32 + lane_;
  }

  __device__ void sum(const Tiles& tiles, float (&sums)[kCount]) {
    products_.begin(tiles.tile());
    const std::uint32_t end = tiles.num_boxes();
    if (end <= set_) return at_.advance(end);
    for (std::uint32_t box = set_; box < end; box += kSets) {
      multiply(box, sums);
      // To this set's next box, or first one of the next tile.
      at_.advance(box + kSets < end ? kSets : end + set_ - box);
    }
  }

  __device__ void multiply(std::uint32_t box, float (&sums)[kCount]) const {
    wait_barrier(full_ + at_.stage, at_.parity);
    products_.multiply(at_.stage, box, empty_ + at_.stage, sums);
  }

  // Two boxes; where Products can, the second's products are under way while the first's are added:
  // of few tokens a box takes as long as the tensor cores take to answer.
  __device__ void multiply_two(std::uint32_t box, float (&first)[kCount], float (&second)[kCount]) {
    if constexpr (Products::kTwoAtOnce) {
      typename Products::OfBox of_first, of_second;
      const std::uint32_t stage = at_.stage;
      wait_barrier(full_ + stage, at_.parity);
      products_.begin_box(stage, box, of_first);
      at_.advance();
      wait_barrier(full_ + at_.stage, at_.parity);
      products_.begin_box(at_.stage, box + 1, of_second);
      wgmma_wait<1>();
      products_.end_box(of_first, box, empty_ + stage, first);
      wgmma_wait<0>();
      products_.end_box(of_second, box + 1, empty_ + at_.stage, second);
    } else {
      multiply(box, first);
      at_.advance();
      multiply(box + 1, second);
    }
    at_.advance();
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t set_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  std::uint64_t* full_;
  std::uint64_t* empty_;
  Handover<Element, Stage, true> handover_;
  Products products_;
  RingPosition<Ring::kStages> at_;  // of the set's next box
};

// Scale words of a thread's rows in its warp's two strips.
struct Words {
  std::uint32_t at[2];
};

template <typename CodesOf>
class ScaleWords {
 public:
  __device__ ScaleWords(const FewRowsArgs& args, std::uint32_t warp)
      : args_(args), warp_(warp), of_rows_(args.codes.row_scales != nullptr) {}

  // Before a tile.
  __device__ void begin(std::uint32_t tile) {
    if (!of_rows_) return;
    const std::uint32_t* words = args_.codes.row_scales;
    const bool gate = args_.epilogue.kind == Epilogue::Gate;
    const std::uint32_t first = first_output(args_, tile, warp_) + threadIdx.x % 32 / 4;
    const std::uint32_t second = first + (gate ? args_.epilogue.num_outputs : kStripRows);
    // Beyond the last output nothing is written.
    const bool exists = first < args_.epilogue.num_outputs;
    row_words_.at[0] = exists ? words[first] : 0;
    row_words_.at[1] = exists && (gate || second < args_.epilogue.num_outputs) ? words[second] : 0;
  }

  // Of the group with that step. `strip`: of a lane's row of the first strip, the first word behind
  // its codes.
  __device__ Words load(const std::uint32_t* strip, std::uint32_t step) const {
    if (of_rows_) return row_words_;
    const std::uint32_t* first = strip + (step >> args_.codes.log_group_steps) * kStripRows;
    return {{*first, first[args_.codes.span_bytes / kScaleBytes]}};
  }

 private:
  const FewRowsArgs& args_;
  std::uint32_t warp_;
  bool of_rows_;
  Words row_words_{};
};

#endif  // INFERNO_SM90A

template <typename Products, typename Element, typename Stage>
__global__ void __launch_bounds__(kThreads<Stage>, 1)
    code_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  run_block<Stage, Sets<Products, Element, Stage>>(args);
#endif
}

template <typename Products, typename Element, typename Stage, std::uint32_t kMaxBoxes = ~0U>
constexpr Variant kVariant = {code_rows_kernel<Products, Element, Stage>, kThreads<Stage>,
                              Ring<Stage>::kSharedBytes, Stage::kTokens, kMaxBoxes};

// The map for boxes of so many of the product's rows of codes, and what else kernels know of them.
CUtensorMap codes_map(const FewRowsProduct& product, const CodeLayout& layout, std::uint32_t rows);
CodesArgs codes_args(const DeviceMatrix& weight, const CodeLayout& layout);

// Of a format that has_code_layout, for activations of `dtype`: growing. Each kind of codes is a
// file.
std::span<const Variant> fp8_variants(Dtype dtype);
std::span<const Variant> split_variants(Dtype dtype);  // of fp8 with a scale for each row
std::span<const Variant> int8_variants(Dtype dtype, bool offsets);
std::span<const Variant> int4_variants(Dtype dtype);
std::span<const Variant> int4_offset_variants(Dtype dtype);
std::span<const Variant> int4_small_group_variants(Dtype dtype, bool offsets);  // than a span
std::span<const Variant> mxfp4_variants(Dtype dtype);

}  // namespace inferno::ops::cuda::codes
