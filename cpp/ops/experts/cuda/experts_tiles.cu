// Products of many rows with each expert's matrix: tiles of 128 rows of x and twice 128 rows of
// weights, by wgmma.
//
// Blocks stay, and take each gridDim.x-th tile; the tiles that share weights are neighbours, so
// that these come from memory once. One warp brings 64 columns of both factors after the other into
// shared memory; two warpgroups have 64 rows of x each. An expert whose last tile has 64 rows or
// fewer leaves the second one out, and the first has the tensor cores for itself. The two runs of
// weights are the same outputs' gate and up, or neighbours; so a thread that has a gate's sum has
// that of up.
#include <algorithm>

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"
#include "ops/experts/cuda/experts_plan.cuh"
#include "ops/glu/activation.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace experts;

constexpr std::uint32_t kRows = 128;     // of x, in a tile
constexpr std::uint32_t kRunRows = 128;  // of weights
constexpr std::uint32_t kGroupRows = 64;
constexpr std::uint32_t kWarps = 8;  // that multiply
constexpr std::uint32_t kBlockThreads = kWarps * 32 + 32;
constexpr std::uint32_t kRowBytes = 128;
constexpr std::uint32_t kInputBytes = kRows * kRowBytes;
constexpr std::uint32_t kRunBytes = kRunRows * kRowBytes;
constexpr std::uint32_t kStageBytes = kInputBytes + 2 * kRunBytes;
constexpr std::uint32_t kStages = 4;
constexpr std::uint32_t kAlignment1024 = 1024;
constexpr std::uint32_t kTilesSharedBytes = kStages * kStageBytes + kAlignment1024;
constexpr int kSums = kRunRows / 2;  // of a thread and a run

struct TilesArgs {
  CUtensorMap weight_map;  // boxes of kRunRows rows
  CUtensorMap input_map;   // boxes of kRows rows
  std::uint32_t num_experts;
  const std::uint32_t* starts;
  Cut cut;
  std::uint32_t outputs_per_tile;
  std::uint32_t second_run;
  std::uint32_t num_columns;  // K
  std::uint32_t num_outputs;
  bool gate;
  Activation activation;
  const float* bias;
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

// By one thread. Weights come before the kernel before this one has ended, rows of x after it.
class TilesProducer {
 public:
  __device__ TilesProducer(const TilesArgs& args, const TilesShared& shared)
      : args_(args), shared_(shared), weights_(evict_first_policy()), keep_(evict_last_policy()) {}

  __device__ void run() const {
    RingPosition<kStages> at;
    std::uint32_t filled = 0;
    bool waited = false;
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
        if (filled >= kStages) wait_barrier(&shared_.empty[at.stage], at.parity ^ 1);
        copy_weights(at.stage, tile, column);
        if (!waited) wait_for_previous();
        waited = true;
        copy_box(shared_.ring + at.stage * kStageBytes, &args_.input_map, column, tile.first_row(),
                 &shared_.full[at.stage], keep_);
        ++filled;
        at.advance();
      }
    }
    let_next_start();
  }

 private:
  __device__ void copy_weights(std::uint32_t stage, const TileWalk& tile,
                               std::uint32_t column) const {
    std::uint64_t* full = &shared_.full[stage];
    const std::uint32_t to = shared_.ring + stage * kStageBytes + kInputBytes;
    const uint3 from{tile.column_tile() * args_.outputs_per_tile, column / kBoxColumns,
                     tile.expert()};
    const uint3 second{from.x + args_.second_run, from.y, from.z};
    arrive_expecting(full, kStageBytes);
    copy_stack_boxes(to, &args_.weight_map, from, full, weights_);
    copy_stack_boxes(to + kRunBytes, &args_.weight_map, second, full, weights_);
  }

  const TilesArgs& args_;
  const TilesShared& shared_;
  std::uint64_t weights_;
  std::uint64_t keep_;
};

template <typename Element>
__device__ __forceinline__ std::uint32_t packed_pair(float low, float high) {
  const Element pair[2] = {from_float<Element>(low), from_float<Element>(high)};
  std::uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}

// Of four lanes with four words each, lane i gets the i-th of all.
__device__ __forceinline__ uint4 transposed(std::uint32_t (&words)[4]) {
  const std::uint32_t lane = threadIdx.x % 4;
  const bool odd = lane % 2 != 0;
  const bool upper = lane / 2 != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(kAllLanes, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(kAllLanes, upper ? words[i] : words[i + 2], 2);
    (upper ? words[i] : words[i + 2]) = got;
  }
  return {words[0], words[1], words[2], words[3]};
}

// By a warpgroup for its 64 rows of x.
template <typename Element, bool kGate>
class TilesConsumer {
 public:
  __device__ TilesConsumer(const TilesArgs& args, const TilesShared& shared)
      : args_(args),
        shared_(shared),
        group_(threadIdx.x / 128),
        warp_(threadIdx.x / 32 % 4),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      if (tile.num_rows() <= group_ * kGroupRows) {
        pass();
        continue;
      }
      float first[kSums];
      float second[kSums];
      multiply(first, second);
      finish(tile, first, second);
    }
  }

 private:
  // Gives stages back unread.
  __device__ void pass() {
    for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      give_back(at_.stage);
      at_.advance();
    }
  }

  // A stage is given back when the products after it have begun, so the tensor cores never rest.
  __device__ void multiply(float (&first)[kSums], float (&second)[kSums]) {
    std::uint32_t before = at_.stage;
    for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      if (column == 0) {
        multiply_stage<true>(first, second);
      } else {
        multiply_stage<false>(first, second);
        wgmma_wait<1>();
        give_back(before);
      }
      before = at_.stage;
      at_.advance();
    }
    wgmma_wait<0>();
    hold(first);
    hold(second);
    give_back(before);
  }

  template <bool kFirst>
  __device__ void multiply_stage(float (&first)[kSums], float (&second)[kSums]) const {
    const std::uint64_t stage =
        advanced(matrix_descriptor(shared_.ring, 0), at_.stage * kStageBytes);
    const std::uint64_t rows = advanced(stage, group_ * kGroupRows * kRowBytes);
    const std::uint64_t weights = advanced(stage, kInputBytes);
    wgmma_fence();
    hold(first);
    hold(second);
    wgmma_rows<Element, kFirst>(first, rows, weights);
    wgmma_rows<Element, kFirst>(second, rows, advanced(weights, kRunBytes));
#pragma unroll
    for (std::uint32_t step = 1; step < kBoxColumns / 16; ++step) {
      wgmma_rows<Element, false>(first, advanced(rows, step * 32), advanced(weights, step * 32));
      wgmma_rows<Element, false>(second, advanced(rows, step * 32),
                                 advanced(weights, kRunBytes + step * 32));
    }
    wgmma_commit();
  }

  __device__ void give_back(std::uint32_t stage) const {
    __syncwarp();
    if (lane_ == 0) arrive(&shared_.empty[stage]);
  }

  __device__ void finish(const TileWalk& tile, float (&first)[kSums],
                         float (&second)[kSums]) const {
    const std::uint32_t output = tile.column_tile() * args_.outputs_per_tile;
    if constexpr (kGate) {
      add_bias(tile.expert(), output, first);
      add_bias(tile.expert(), args_.num_outputs + output, second);
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        first[i] = activated(args_.activation, first[i], second[i]);
      }
      store(tile, output, first);
    } else {
      add_bias(tile.expert(), output, first);
      add_bias(tile.expert(), output + kRunRows, second);
      store(tile, output, first);
      store(tile, output + kRunRows, second);
    }
  }

  // A thread has outputs 8 j + 2 (lane % 4) and the next of rows lane / 4 and + 8.
  __device__ void add_bias(std::uint32_t expert, std::uint32_t output, float (&sums)[kSums]) const {
    if (args_.bias == nullptr) return;
    const std::uint32_t size = kGate ? 2 * args_.num_outputs : args_.num_outputs;
    const float* bias = args_.bias + std::size_t{expert} * size;
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      const std::uint32_t at = output + j * 8 + lane_ % 4 * 2;
      if (at >= size) break;
      const float2 two = *reinterpret_cast<const float2*>(bias + at);
      sums[j * 4] += two.x;
      sums[j * 4 + 1] += two.y;
      sums[j * 4 + 2] += two.x;
      sums[j * 4 + 3] += two.y;
    }
  }

  // Four lanes put four runs of 8 outputs together, so that each writes one run.
  __device__ void store(const TileWalk& tile, std::uint32_t output,
                        const float (&sums)[kSums]) const {
    const std::uint32_t row = group_ * kGroupRows + warp_ * 16 + lane_ / 4;
#pragma unroll
    for (std::uint32_t half = 0; half < 2; ++half) {
      const bool exists = row + half * 8 < tile.num_rows();
      Element* to = static_cast<Element*>(args_.out) +
                    std::size_t{tile.first_row() + row + half * 8} * args_.num_outputs;
#pragma unroll
      for (int j = 0; j < kSums / 4; j += 4) {
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] =
              packed_pair<Element>(sums[(j + i) * 4 + half * 2], sums[(j + i) * 4 + half * 2 + 1]);
        }
        const uint4 run = transposed(words);
        const std::uint32_t column = output + (j + lane_ % 4) * 8;
        if (exists && column < args_.num_outputs) *reinterpret_cast<uint4*>(to + column) = run;
      }
    }
  }

  const TilesArgs& args_;
  const TilesShared& shared_;
  std::uint32_t group_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<kStages> at_;
};

#endif  // INFERNO_SM90A

template <typename Element, bool kGate>
__global__ void __launch_bounds__(kBlockThreads, 1)
    tiles_kernel(const __grid_constant__ TilesArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  __shared__ std::uint64_t full[kStages];
  __shared__ std::uint64_t empty[kStages];
  __shared__ Plan plan;
  const std::uint32_t base = shared_address(dynamic);
  const TilesShared shared{full, empty,
                           (base + kAlignment1024 - 1) / kAlignment1024 * kAlignment1024, &plan};
  const bool produces = threadIdx.x == kWarps * 32;
  if (produces) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kWarps);
    }
    fence_barrier_init();
    prefetch_map(&args.weight_map);
    prefetch_map(&args.input_map);
  }
  if (!args.routed) wait_for_previous();
  for (std::uint32_t i = threadIdx.x; i <= args.num_experts; i += kBlockThreads) {
    plan.starts[i] = __ldcg(args.starts + i);
  }
  __syncthreads();
  if (threadIdx.x < 32) list_tiles(plan, args.num_experts, args.cut);
  __syncthreads();
  if (threadIdx.x >= kWarps * 32) {
    if (produces) TilesProducer(args, shared).run();
    return;
  }
  wait_for_previous();
  TilesConsumer<Element, kGate>(args, shared).run();
#endif
}

using TilesKernel = void (*)(TilesArgs);

template <typename Element>
TilesKernel kernel_of(bool gate) {
  return gate ? tiles_kernel<Element, true> : tiles_kernel<Element, false>;
}

TilesKernel kernel_of(Dtype dtype, bool gate) {
  return dtype == Dtype::BF16 ? kernel_of<__nv_bfloat16>(gate) : kernel_of<__half>(gate);
}

}  // namespace

ExpertsTilesKernel::ExpertsTilesKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const bool gate : {false, true}) {
      available_ = available_ && prepare(kernel_of(dtype, gate), kTilesSharedBytes);
      if (!available_) return;
    }
  }
}

void ExpertsTilesKernel::operator()(const CudaOp& op, const ExpertsProduct& product) const {
  const WeightShape& shape = product.weight.shape;
  const PairRouting& routing = product.routing;
  TilesArgs args{};
  args.weight_map =
      stack_map({{product.weight.data, shape.num_rows, shape.num_columns, shape.dtype},
                 routing.num_experts,
                 product.weight.expert_stride},
                kRunRows, 1);
  args.input_map = box_map({product.x, routing.num_pairs, shape.num_columns, shape.dtype}, kRows);
  args.num_experts = routing.num_experts;
  args.starts = product.sorted.starts;
  args.outputs_per_tile = product.gate ? kRunRows : 2 * kRunRows;
  args.second_run = product.gate ? shape.num_rows / 2 : kRunRows;
  args.num_columns = shape.num_columns;
  args.num_outputs = product.num_outputs();
  args.cut = {kRows, divide_up(args.num_outputs, args.outputs_per_tile)};
  args.gate = product.gate;
  args.activation = product.activation;
  args.bias = product.weight.bias;
  args.routed = product.routed;
  args.out = product.out;
  const std::uint64_t row_tiles = routing.num_pairs / kRows + std::uint64_t{routing.num_experts};
  const auto blocks = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(op.num_sms, row_tiles * args.cut.column_tiles));
  launch(op, kernel_of(shape.dtype, product.gate), {blocks, kBlockThreads, kTilesSharedBytes},
         args);
}

}  // namespace inferno::ops::cuda
