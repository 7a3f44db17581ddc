// Products of few rows with each chosen expert's matrix, at the memory's pace.
//
// Every block knows all tiles of the batch (an expert, up to 32 of its rows, up to 48 rows of its
// weights) and takes each gridDim.x-th. One warp streams a tile's weights through a ring in shared
// memory, and with them the rows of x, each by a copy of its own from wherever it is. Each of eight
// warps multiplies its share of a stage's columns, and their sums meet at the end of the tile.
//
// Batch invariance: the order of an output's sum depends on K only: a warp's columns stage by
// stage, then warp by warp. How many rows share a tile, how tall it is and who computes it does not
// matter.
#include <algorithm>

#include "ops/experts/cuda/experts_ring.cuh"
#include "ops/glu/activation.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace experts;

#ifdef INFERNO_SM90A

// By all consumer warps.
template <typename Element, int kMatrices, int kGroups>
class Consumer {
 public:
  __device__ Consumer(const StreamArgs& args, const Shared& shared)
      : args_(args), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    load_scales();
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      Sums sums{};
      for (std::uint32_t column = 0; column < args_.num_columns; column += kStageColumns) {
        wait_barrier(&shared_.full[at_.stage], at_.parity);
        // Either all columns of a warp are there or none.
        if (column + warp_ * kWarpColumns < args_.num_columns) multiply_stage(sums);
        __syncwarp();
        if (lane_ == 0) arrive(&shared_.empty[at_.stage]);
        at_.advance();
      }
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        if (group * 8 >= tile.num_rows()) break;
        meet(sums, group);
        finish(tile, group);
      }
    }
  }

 private:
  using Ring = experts::Ring<kMatrices, kGroups>;
  struct Sums {
    float at[kGroups][kMatrices][4];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  // A warp has every eighth token; the loads of all are under way together.
  __device__ void load_scales() const {
    if (args_.square_sums == nullptr) return;
    EpilogueArgs epilogue{};
    epilogue.num_tokens = args_.routing.num_pairs / args_.routing.experts_per_token;
    epilogue.num_columns = args_.num_columns;
    epilogue.square_sums = args_.square_sums;
    epilogue.num_square_sums = args_.num_square_sums;
    epilogue.eps = args_.eps;
    float scales[kMaxFewRows / kConsumers];
    row_scales<false>(epilogue, warp_, kConsumers, scales);
#pragma unroll
    for (std::uint32_t i = 0; i < kMaxFewRows / kConsumers; ++i) {
      if (lane_ == 0) shared_.scale[warp_ + i * kConsumers] = scales[i];
    }
  }

  // The swizzle of weights: in row r of the ring, the 16 bytes numbered c lie at c ^ (r % 8).
  __device__ void multiply_stage(Sums& sums) const {
    const std::uint32_t row = lane_ % 8;
    const std::uint32_t box = warp_ * kWarpColumns / kBoxColumns;
    const std::uint32_t column = warp_ * kWarpColumns % kBoxColumns / 8;  // of 16 bytes, in the box
    // Matrices 0 and 2 of an mma's weights are of the first run, 1 and 3 of the second; 2 and 3
    // eight columns on.
    const std::uint32_t weights = shared_.weights + at_.stage * Ring::kWeightBytes +
                                  lane_ / 8 % 2 * (Ring::kWeightBytes / 2) + box * Ring::kRunBytes +
                                  row * kBoxRowBytes;
    const std::uint32_t rows = shared_.rows + (at_.stage * Ring::kRows + row) * Ring::kRowBytes +
                               warp_ * kWarpColumns * 2 + lane_ / 8 * 16;
    static_assert(kWarpColumns == 32);  // two steps of 16
    Fragments b[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      b[group] = load_matrices(rows + group * 8 * Ring::kRowBytes);
    }
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

  // The whole sum of a row of weights of one of the runs and a row of x: warp by warp.
  __device__ float sum_of(std::uint32_t run, std::uint32_t row, std::uint32_t x_row) const {
    const float* words =
        shared_.sums + row / 8 * 128 + (row % 8 * 4 + x_row / 2) * 4 + run * 2 + x_row % 2;
    float sum = 0.0F;
#pragma unroll
    for (std::uint32_t warp = 0; warp < kConsumers; ++warp) sum += words[warp * kMatrices * 128];
    return sum;
  }

  __device__ float bias_at(std::uint32_t expert, std::uint32_t output) const {
    const std::uint32_t size = args_.gate ? 2 * args_.num_outputs : args_.num_outputs;
    return args_.bias == nullptr ? 0.0F : args_.bias[std::size_t{expert} * size + output];
  }

  __device__ void finish(const TileWalk& tile, std::uint32_t group) const {
    const std::uint32_t rows = min(tile.num_rows() - group * 8, 8U);
    for (std::uint32_t i = threadIdx.x; i < rows * args_.outputs_per_tile; i += kConsumerThreads) {
      const std::uint32_t row = i % args_.outputs_per_tile;
      const std::uint32_t x_row = i / args_.outputs_per_tile;
      const std::uint32_t output = tile.column_tile() * args_.outputs_per_tile + row;
      if (output >= args_.num_outputs) continue;
      const std::uint32_t pair = shared_.order[tile.first_row() + group * 8 + x_row];
      const float scale =
          args_.square_sums == nullptr ? 1.0F : shared_.scale[pair / args_.row_divisor];
      float value;
      if (args_.gate) {
        const float gate = sum_of(0, row, x_row) * scale + bias_at(tile.expert(), output);
        const float up =
            sum_of(1, row, x_row) * scale + bias_at(tile.expert(), args_.num_outputs + output);
        value = activated(args_.activation, gate, up);
      } else {
        const std::uint32_t run = row / Ring::kRunRows;
        value = sum_of(run, row % Ring::kRunRows, x_row) * scale + bias_at(tile.expert(), output);
      }
      static_cast<Element*>(args_.out)[std::size_t{pair} * args_.num_outputs + output] =
          from_float<Element>(value);
    }
  }

  const StreamArgs& args_;
  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<Ring::kStages> at_;
};

// The plan, by the whole block. `scratch`: of the sort, in the ring.
__device__ void make_plan(const StreamArgs& args, Plan& plan, std::uint32_t* scratch,
                          std::uint32_t* order) {
  const std::uint32_t num_experts = args.routing.num_experts;
  if (args.sorted.order == nullptr) {
    PairSort{args.routing, scratch, plan.starts, order, nullptr}.run();
  } else {
    for (std::uint32_t i = threadIdx.x; i <= num_experts; i += kThreads) {
      plan.starts[i] = __ldcg(args.sorted.starts + i);
    }
    __syncthreads();
  }
  if (threadIdx.x < 32) list_tiles(plan, num_experts, args.cut);
}

#endif  // INFERNO_SM90A

template <typename Element, int kMatrices, int kGroups>
__global__ void __launch_bounds__(kThreads, 2)
    stream_kernel(const __grid_constant__ StreamArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = experts::Ring<kMatrices, kGroups>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ float scale[kMaxFewRows];
  const std::uint32_t base = shared_address(dynamic);
  unsigned char* at =
      dynamic + (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment - base;
  unsigned char* rows = at + Ring::kStages * Ring::kWeightBytes;
  unsigned char* sums = rows + Ring::kStages * Ring::kRows * Ring::kRowBytes;
  auto* order = reinterpret_cast<std::uint32_t*>(sums + Ring::kSumBytes);
  auto* plan = reinterpret_cast<Plan*>(order + kMaxBlockPairs);
  const Shared shared{full,
                      empty,
                      shared_address(at),
                      shared_address(rows),
                      reinterpret_cast<float*>(sums),
                      scale,
                      plan,
                      args.sorted.order == nullptr ? order : args.sorted.order};
  const bool produces = threadIdx.x >= kConsumerThreads;
  if (threadIdx.x == kConsumerThreads) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumers);
    }
    fence_barrier_init();
    prefetch_map(&args.weight_map);
  }
  if (!args.routed) wait_for_previous();
  make_plan(args, *plan, reinterpret_cast<std::uint32_t*>(at), order);
  fence_async_proxy();  // the ring was the sort's scratch
  __syncthreads();
  if (produces) {
    Producer<kMatrices, kGroups>(args, shared).run();
    return;
  }
  wait_for_previous();
  Consumer<Element, kMatrices, kGroups>(args, shared).run();
#endif
}

using Kernel = void (*)(StreamArgs);

constexpr int kMatricesOf[] = {1, 2, 3};
constexpr int kGroupsOf[] = {1, 2, 4};

template <typename Element, int kMatrices>
constexpr Kernel kKernelsOf[] = {stream_kernel<Element, kMatrices, 1>,
                                 stream_kernel<Element, kMatrices, 2>,
                                 stream_kernel<Element, kMatrices, 4>};

template <typename Element>
Kernel kernel_of(int matrices, int groups) {
  const Kernel* kernels = matrices == 0   ? kKernelsOf<Element, 1>
                          : matrices == 1 ? kKernelsOf<Element, 2>
                                          : kKernelsOf<Element, 3>;
  return kernels[groups];
}

Kernel kernel_of(Dtype dtype, int matrices, int groups) {
  return dtype == Dtype::BF16 ? kernel_of<__nv_bfloat16>(matrices, groups)
                              : kernel_of<__half>(matrices, groups);
}

// Rows of x in a tile, so that most experts have one row tile and few of its rows are empty.
int groups_of(const PairRouting& routing) {
  const std::uint32_t tokens = routing.num_pairs / routing.experts_per_token;
  const std::uint32_t mean = routing.num_pairs / routing.num_experts;
  return tokens <= 8 || mean <= 3 ? 0 : tokens <= 16 || mean <= 8 ? 1 : 2;
}

// The tile height that gives the fullest multiprocessor least to do; of equals the largest.
int matrices_of(const ExpertsProduct& product, std::uint32_t num_sms) {
  const PairRouting& routing = product.routing;
  const std::uint32_t experts = std::min(routing.num_pairs, routing.num_experts);
  const std::uint32_t run_outputs = product.gate ? 8 : 16;
  const auto most = [&](int matrices) {
    const std::uint32_t height = kMatricesOf[matrices];
    const std::uint32_t tiles = experts * divide_up(product.num_outputs(), run_outputs * height);
    return divide_up(tiles, num_sms) * height;
  };
  int best = 2;
  for (const int i : {1, 0}) {
    if (most(i) < most(best)) best = i;
  }
  return best;
}

}  // namespace

ExpertsStreamKernel::ExpertsStreamKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (int matrices = 0; matrices < 3; ++matrices) {
      for (int groups = 0; groups < 3; ++groups) {
        available_ = available_ && prepare(kernel_of(dtype, matrices, groups), kSharedBytes);
        if (!available_) return;
      }
    }
  }
}

bool ExpertsStreamKernel::takes(const WeightShape& shape) {
  return shape.num_columns % kBoxColumns == 0;
}

void ExpertsStreamKernel::operator()(const CudaOp& op, const ExpertsProduct& product) const {
  const WeightShape& shape = product.weight.shape;
  const int matrices = matrices_of(product, op.num_sms);
  const int groups = groups_of(product.routing);
  const std::uint32_t run_rows = kMatricesOf[matrices] * 8;
  StreamArgs args{};
  args.weight_map =
      stack_map({{product.weight.data, shape.num_rows, shape.num_columns, shape.dtype},
                 product.routing.num_experts,
                 product.weight.expert_stride},
                run_rows, kBoxes);
  args.routing = product.routing;
  args.sorted = product.sorted;
  args.routed = product.routed;
  args.x = product.x;
  args.row_divisor = product.token_rows ? product.routing.experts_per_token : 1;
  args.num_columns = shape.num_columns;
  args.outputs_per_tile = product.gate ? run_rows : 2 * run_rows;
  args.second_run = product.gate ? shape.num_rows / 2 : run_rows;
  args.num_outputs = product.num_outputs();
  args.cut = {static_cast<std::uint32_t>(kGroupsOf[groups]) * 8,
              divide_up(args.num_outputs, args.outputs_per_tile)};
  args.gate = product.gate;
  args.activation = product.activation;
  args.bias = product.weight.bias;
  args.square_sums = product.square_sums;
  args.num_square_sums = product.num_square_sums;
  args.eps = product.eps;
  args.out = product.out;
  const std::uint64_t most_tiles = std::uint64_t{product.routing.num_pairs} * args.cut.column_tiles;
  const auto blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(op.num_sms, most_tiles));
  launch(op, kernel_of(shape.dtype, matrices, groups), {blocks, kThreads, kSharedBytes}, args);
}

}  // namespace inferno::ops::cuda
