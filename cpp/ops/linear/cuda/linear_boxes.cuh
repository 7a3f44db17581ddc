// How the kernels for few rows (linear_few_rows.cu, linear_codes.cuh) cut a weight matrix into
// boxes, give them to blocks, and stream them through shared memory.
//
// A cluster of eight blocks computes one tile of up to 128 rows of W after the other, each block
// with an eighth of the columns. Tiles are as high as makes the clusters' last ones end together.
// In a block one warp streams its boxes of W and of the input through a ring in shared memory; it
// fills the ring before it waits for the kernel before this one, since weights are constant. Eight
// warps multiply; linear_handover.cuh has what becomes of their sums.
//
// Batch invariance: cuts depend on the weight's shape only, and the sum of an output goes through
// its columns in order, cut by cut. So a row's bits are the same alone and beside others.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda::boxes {

constexpr std::uint32_t kCluster = 8;                 // blocks that share a tile
constexpr std::uint32_t kBoxRowBytes = 128;           // of 64 columns of elements
constexpr std::uint32_t kConsumers = kTileRows / 16;  // warps
constexpr std::uint32_t kConsumerThreads = kConsumers * 32;
static_assert(kConsumers == kCluster);  // each block finishes the outputs of one warp of all

// More than half of an SM's shared memory, so that two blocks never share an SM while another has
// none; the rest is left to the kernels between two products, which may start early. (Two blocks an
// SM, one finishing while the next fills its ring, measured slower: the rings are too small then
// for what lies between two products.)
constexpr std::uint32_t kRingAndSumsBytes = 222 * 1024;
constexpr std::uint32_t kSwizzleAlignment = 1024;

// A place for a warp's sums from each block of a cluster.
template <int kTokens>
struct Places {
  static constexpr std::uint32_t kBytes = kCluster * (kTokens / 8) * 32 * sizeof(float4);
};

// Of a block: all but the warp that streams, and with it.
template <typename Stage>
constexpr std::uint32_t kMultiplyingThreads = Stage::kSets* kConsumerThreads;
template <typename Stage>
constexpr std::uint32_t kWorkingThreads = kMultiplyingThreads<Stage> + Stage::kFinishers * 32;
template <typename Stage>
constexpr std::uint32_t kThreads = kWorkingThreads<Stage> + 32;

// What a Stage says: kTokens; kPlaces (linear_handover.cuh); kFinishers, the warps that only finish
// tiles; kSets of consumer warps, which take boxes by turns and whose sums meet in a place more
// each; kColumns of a box, a
// multiple of kBoxColumns; kWeightBytes, the room for a box of W, before the same columns of the
// input; `weight_bytes`, how many of them come, and `copy_weights`, by which copy; kKeptBytes that
// the consumers use besides: if any, they read the input themselves and it does not come through
// the ring.
template <typename Stage>
struct Ring {
  static constexpr std::uint32_t kPartBytes = Stage::kTokens * kBoxRowBytes;  // of 64 columns
  static constexpr std::uint32_t kParts = Stage::kKeptBytes > 0 ? 0 : Stage::kColumns / kBoxColumns;
  static constexpr std::uint32_t kInputBytes = kParts * kPartBytes;
  static constexpr std::uint32_t kStageBytes = Stage::kWeightBytes + kInputBytes;
  static constexpr std::uint32_t kPlacesBytes =
      (Stage::kPlaces + Stage::kSets - 1) * Places<Stage::kTokens>::kBytes;
  static constexpr std::uint32_t kStages =
      (kRingAndSumsBytes - kPlacesBytes - Stage::kKeptBytes) / kStageBytes;
  static constexpr std::uint32_t kSharedBytes =
      kStages * kStageBytes + kPlacesBytes + Stage::kKeptBytes + kSwizzleAlignment;
  static_assert(kStageBytes % kSwizzleAlignment == 0);
  static_assert(kStages > 1);  // a stage is given back when the next has begun
};

// Of a matrix of codes.
struct CodesArgs {
  bool row_major;                   // boxes come with the swizzle
  std::uint32_t span_bytes;         // of a strip of 8 rows
  const std::uint32_t* row_scales;  // scale words where a row has one; else null
  std::uint32_t log_group_steps;    // columns of a group are 16 << this
};

struct FewRowsArgs {
  CUtensorMap weight_map;
  CUtensorMap input_map;
  const void* input;  // [T, K]
  std::uint32_t num_columns;
  EpilogueArgs epilogue;
  // A warp has 16 neighbouring rows of a tile; of Gate 8 outputs' pairs, 8 rows of gate before the
  // 8 of up, so that a thread, which has the sums of rows r and r + 8, has both.
  std::uint32_t warps_per_tile;  // that have rows
  std::uint32_t outputs_per_warp;
  std::uint32_t boxes_per_tile;
  std::uint32_t num_tiles;
  float* next_square_sums;
  std::uint32_t num_next_sums;  // of a row
  CodesArgs codes;
  std::uint32_t in_flight;  // stages of W that are under way at once, where Filling counts them
};

constexpr std::uint32_t kWarpRows = kTileRows / kConsumers;

#ifdef INFERNO_SM90A

// The first output of a warp of a tile; far behind all where it has none.
__device__ __forceinline__ std::uint32_t first_output(const FewRowsArgs& args, std::uint32_t tile,
                                                      std::uint32_t warp) {
  if (warp >= args.warps_per_tile) return 1U << 31;
  return (tile * args.warps_per_tile + warp) * args.outputs_per_warp;
}

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
  __device__ std::uint32_t box() const { return tiles_.first_box() + box_; }

 private:
  Tiles tiles_;
  std::uint32_t box_ = 0;
};

struct Shared {
  std::uint64_t* full;    // [kStages] weights and input have come
  std::uint64_t* empty;   // [kStages] all consumers have read them
  std::uint64_t* handed;  // [kPlaces] the sums of all blocks have come
  std::uint32_t ring;     // address
  const std::byte* ring_data;
  float4* sums;  // [kPlaces, kCluster, kTokens / 8, 32]
  float* scale;  // [kCallRows] of a token's row
  std::byte* kept;
};

// Where the next box goes in the ring, and when.
template <typename Stage>
class Filling {
 public:
  __device__ Filling(const Shared& shared, std::uint32_t in_flight)
      : shared_(shared), in_flight_(in_flight) {}

  __device__ std::uint32_t stage() const { return to_.stage; }

  // Until consumers have read what lies there and few enough boxes are on their way: others wait
  // behind these, sums and inputs, too.
  __device__ void wait() {
    if (count_ >= kStages) wait_barrier(&shared_.empty[to_.stage], to_.parity ^ 1);
    if (in_flight_ < kStages && count_ >= in_flight_) {
      wait_barrier(&shared_.full[from_.stage], from_.parity);
      from_.advance();
    }
  }
  __device__ void advance() {
    to_.advance();
    ++count_;
  }

 private:
  static constexpr std::uint32_t kStages = Ring<Stage>::kStages;
  const Shared& shared_;
  std::uint32_t in_flight_;
  std::uint32_t count_ = 0;
  RingPosition<kStages> to_;
  RingPosition<kStages> from_;  // of the first box that may still be on its way
};

template <typename Stage>
class Producer {
 public:
  __device__ Producer(const FewRowsArgs& args, const Shared& shared)
      : args_(args), shared_(shared), policy_(evict_first_policy()), keep_(evict_last_policy()) {}

  // By one thread.
  __device__ void run() const {
    if constexpr (Ring::kParts == 0) {
      stream_weights();
    } else {
      stream_both();
    }
  }

 private:
  using Ring = boxes::Ring<Stage>;
  static constexpr std::uint32_t kStages = Ring::kStages;

  // Weights are constant: they wait for no kernel.
  __device__ void stream_weights() const {
    Filling<Stage> filling(shared_, args_.in_flight);
    for (BoxWalk walk(args_); walk.exists(); walk.advance()) {
      filling.wait();
      copy_weights(filling.stage(), walk);
      filling.advance();
    }
  }

  __device__ void stream_both() const {
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

  __device__ void copy_weights(std::uint32_t stage, const BoxWalk& walk) const {
    std::uint64_t* full = &shared_.full[stage];
    arrive_expecting(full, Stage::weight_bytes(args_) + Ring::kInputBytes);
    Stage::copy_weights(args_, walk, shared_.ring + stage * Ring::kStageBytes, full, policy_);
  }

  __device__ void copy_input(std::uint32_t stage, const BoxWalk& walk) const {
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + Stage::kWeightBytes;
    if constexpr (Ring::kParts > 0) {
#pragma unroll
      for (std::uint32_t part = 0; part < Ring::kParts; ++part) {
        const std::uint32_t column = walk.box() * Stage::kColumns + part * kBoxColumns;
        copy_box(to + part * Ring::kPartBytes, &args_.input_map, {column, 0}, &shared_.full[stage],
                 keep_);
      }
    }
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint64_t policy_;
  std::uint64_t keep_;
};

// What a block does. Consumer(args, shared).run() is by all warps but the one that streams.
template <typename Stage, typename Consumer>
__device__ __forceinline__ void run_block(const FewRowsArgs& args) {
  extern __shared__ unsigned char dynamic[];
  using Ring = boxes::Ring<Stage>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ std::uint64_t handed[Stage::kPlaces];
  __shared__ float scale[Stage::kTokens];
  const std::uint32_t base = shared_address(dynamic);
  const std::uint32_t ring = (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  float4* sums =
      reinterpret_cast<float4*>(dynamic + (ring - base) + Ring::kStages * Ring::kStageBytes);
  const Shared shared{full,
                      empty,
                      handed,
                      ring,
                      reinterpret_cast<std::byte*>(dynamic) + (ring - base),
                      sums,
                      scale,
                      reinterpret_cast<std::byte*>(sums) + Ring::kPlacesBytes};
  const bool produces = threadIdx.x == kWorkingThreads<Stage>;
  if (produces) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumers);
    }
    for (std::uint64_t& barrier : handed) {
      init_barrier(&barrier, 1);
      arrive_expecting(&barrier, Places<Stage::kTokens>::kBytes);
    }
    fence_barrier_init();
  }
  arrive_at_cluster();
  if (threadIdx.x >= kWorkingThreads<Stage>) {
    if (produces) Producer<Stage>(args, shared).run();
    return;
  }
  wait_for_cluster();
  let_next_start();
  wait_for_previous();
  Consumer(args, shared).run();
}

#endif  // INFERNO_SM90A

struct Variant {
  void (*kernel)(FewRowsArgs);
  std::uint32_t threads;
  std::uint32_t shared_bytes;
  std::uint32_t max_tokens;
  std::uint32_t max_boxes = ~0U;  // of a block
};

// Of clusters of a kernel, of so many blocks, how many a device runs at once; none where this build
// has no machine code of it for the device.
std::uint32_t clusters_at_once(const CudaOp& op, const Variant& variant,
                               std::uint32_t blocks = kCluster);

// How the product is cut for so many clusters, with boxes of so many columns; all but the maps.
FewRowsArgs few_rows_args(const FewRowsProduct& product, std::uint32_t box_columns,
                          std::uint32_t num_clusters);

void launch_few_rows(const CudaOp& op, const Variant& variant, const FewRowsArgs& args,
                     std::uint32_t num_clusters);

}  // namespace inferno::ops::cuda::boxes
