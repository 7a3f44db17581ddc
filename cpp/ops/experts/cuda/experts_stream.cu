// Products of few rows with each chosen expert's matrix, at the memory's pace.
//
// Every block knows all tiles of the batch (an expert, up to 32 of its rows, up to 48 rows of its
// weights) and takes each gridDim.x-th. One warp streams a tile's weights through a ring in shared
// memory, and with them the rows of x, each by a copy of its own from wherever it is. Each of eight
// warps multiplies its share of a stage's columns, and their sums meet at the end of the tile.
//
// The order of an output's sum depends on K only: a warp's columns turn by turn, then warp by warp.
// How many rows share a tile, how tall it is and who computes it does not matter.
#include <algorithm>
#include <span>

#include "ops/experts/cuda/experts_ring.cuh"
#include "ops/glu/activation.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace experts;

#ifdef INFERNO_SM90A

// By all consumer warps.
template <typename Element, int kMatrices, int kGroups>
class Consumer : Multiplier<Element, kMatrices, kGroups, Ring<kMatrices, kGroups>> {
 public:
  __device__ Consumer(const StreamArgs& args, const Shared& shared) : Base(shared), args_(args) {}

  __device__ void run() {
    load_scales();
    for (TileWalk tile(*shared_.plan, args_.cut); tile.exists(); tile.advance()) {
      Sums sums{};
      for (std::uint32_t column = 0; column < args_.num_columns; column += Ring::kStageColumns) {
        wait_barrier(&shared_.full[at_.stage], at_.parity);
        this->for_each_turn(column, args_.num_columns,
                            [&](std::uint32_t turn) { multiply_turn(turn, sums); });
        this->give_back();
      }
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        if (group * 8 >= tile.num_rows()) break;
        this->meet(sums, group);
        finish(tile, group);
      }
    }
  }

 private:
  using Ring = experts::Ring<kMatrices, kGroups>;
  using Base = Multiplier<Element, kMatrices, kGroups, Ring>;
  using Sums = typename Base::Sums;
  using Base::at_;
  using Base::lane_;
  using Base::shared_;
  using Base::warp_;

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

  __device__ void multiply_turn(std::uint32_t turn, Sums& sums) const {
    std::uint32_t rows[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      rows[group] = shared_.rows +
                    (at_.stage * Ring::kRows + group * 8 + lane_ % 8) * Ring::kRowBytes +
                    this->column_offset(turn);
    }
    this->multiply(turn, rows, sums);
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
        const float gate = this->sum_of(0, row, x_row) * scale + bias_at(tile.expert(), output);
        const float up = this->sum_of(1, row, x_row) * scale +
                         bias_at(tile.expert(), args_.num_outputs + output);
        value = activated(args_.activation, gate, up);
      } else {
        const std::uint32_t run = row / Ring::kRunRows;
        value =
            this->sum_of(run, row % Ring::kRunRows, x_row) * scale + bias_at(tile.expert(), output);
      }
      if (args_.pair_weights != nullptr) value *= shared_.pair_weights[pair];
      static_cast<Element*>(args_.out)[std::size_t{pair} * args_.num_outputs + output] =
          from_float<Element>(value);
    }
  }

  const StreamArgs& args_;
};

#endif  // INFERNO_SM90A

template <typename Element, int kMatrices, int kGroups>
__global__ void __launch_bounds__(kThreads, Ring<kMatrices, kGroups>::kBlocks)
    stream_kernel(const __grid_constant__ StreamArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = experts::Ring<kMatrices, kGroups>;
  const Shared shared = prepare_block<Ring>(args, dynamic);
  if (threadIdx.x >= kConsumerThreads) {
    Producer<Ring, TileWalk>(args, shared).run();
    return;
  }
  wait_for_previous();
  Consumer<Element, kMatrices, kGroups>(args, shared).run();
#endif
}

struct Variant {
  void (*kernel)(StreamArgs);
  std::uint32_t shared_bytes;
  std::uint32_t matrices;
  std::uint32_t groups;
  std::uint32_t boxes;
};

template <typename Element, int kMatrices, int kGroups>
constexpr Variant kVariant = {stream_kernel<Element, kMatrices, kGroups>,
                              Ring<kMatrices, kGroups>::kSharedBytes, kMatrices, kGroups,
                              Ring<kMatrices, kGroups>::kBoxes};

template <typename Element>
constexpr Variant kVariants[] = {
    kVariant<Element, 1, 1>, kVariant<Element, 2, 1>, kVariant<Element, 3, 1>,
    kVariant<Element, 1, 2>, kVariant<Element, 2, 2>, kVariant<Element, 3, 2>,
    kVariant<Element, 1, 4>, kVariant<Element, 2, 4>, kVariant<Element, 3, 4>};

std::span<const Variant> variants_of(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kVariants<__nv_bfloat16>) : std::span(kVariants<__half>);
}

// Groups of rows of x in a tile, so that most experts have one row tile and few of its rows are
// empty.
std::uint32_t groups_of(const PairRouting& routing) {
  const std::uint32_t tokens = routing.num_pairs / routing.experts_per_token;
  const std::uint32_t mean = routing.num_pairs / routing.num_experts;
  return tokens <= 8 || mean <= 3 ? 1 : tokens <= 16 || mean <= 8 ? 2 : 4;
}

// Of the tile heights with which the fullest multiprocessor has nearly least to do the largest:
// rows of x come again with every tile.
const Variant& variant_of(const ExpertsProduct& product, std::uint32_t num_sms) {
  const PairRouting& routing = product.routing;
  const std::uint32_t experts = std::min(routing.num_pairs, routing.num_experts);
  const std::uint32_t run_outputs = product.gate ? 8 : 16;
  const std::uint32_t groups = groups_of(routing);
  const auto most = [&](const Variant& variant) {
    const std::uint32_t height = run_outputs * variant.matrices;
    const std::uint32_t tiles = experts * divide_up(product.num_outputs(), height);
    return divide_up(tiles, num_sms) * height;
  };
  constexpr double kNearly = 1.15;
  const Variant* best = nullptr;
  for (const Variant& variant : variants_of(product.weight.shape.dtype())) {
    if (variant.groups != groups) continue;
    if (best == nullptr || most(variant) <= kNearly * most(*best)) best = &variant;
  }
  return *best;
}

}  // namespace

ExpertsStreamKernel::ExpertsStreamKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const Variant& variant : variants_of(dtype)) {
      available_ = available_ && prepare(variant.kernel, variant.shared_bytes);
      if (!available_) return;
    }
  }
}

bool ExpertsStreamKernel::takes(const WeightShape& shape) {
  return shape.num_columns % kBoxColumns == 0;
}

void ExpertsStreamKernel::operator()(const CudaOp& op, const ExpertsProduct& product) const {
  const WeightShape& shape = product.weight.shape;
  const Variant& variant = variant_of(product, op.num_sms);
  const std::uint32_t run_rows = variant.matrices * 8;
  StreamArgs args{};
  args.weight_map = stack_map(stack_of(product.weight, product.routing), run_rows, variant.boxes);
  args.routing = product.routing;
  args.sorted = product.sorted;
  args.routed = product.routed;
  args.x = product.x;
  args.row_divisor = product.token_rows ? product.routing.experts_per_token : 1;
  args.num_columns = shape.num_columns;
  args.outputs_per_tile = product.gate ? run_rows : 2 * run_rows;
  args.second_run = product.gate ? shape.num_rows / 2 : run_rows;
  args.num_outputs = product.num_outputs();
  args.cut = {variant.groups * 8, divide_up(args.num_outputs, args.outputs_per_tile)};
  args.gate = product.gate;
  args.activation = product.activation;
  args.bias = product.weight.bias;
  args.square_sums = product.square_sums;
  args.num_square_sums = product.num_square_sums;
  args.eps = product.eps;
  args.pair_weights = product.pair_weights;
  args.out = product.out;
  const std::uint64_t most_tiles = std::uint64_t{product.routing.num_pairs} * args.cut.column_tiles;
  const auto blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(op.num_sms, most_tiles));
  launch(op, variant.kernel, {blocks, kThreads, variant.shared_bytes}, args);
}

}  // namespace inferno::ops::cuda
