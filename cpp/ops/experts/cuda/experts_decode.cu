// The last product of a few tokens' experts, which sums as it goes: what a token gets from its
// experts is one long product, of all these experts' matrices side by side with what the token has
// for each, zeros for experts that are not its own. So sums stay in registers over all experts, and
// nothing is left to be summed by another kernel.
//
// A block has a few rows of every chosen expert's matrix, so all blocks have the same to do. The
// rest is as in experts_stream.cu.
#include <algorithm>
#include <span>

#include "ops/experts/cuda/experts_ring.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace experts;

struct DecodeArgs {
  StreamArgs stream;
  const float* weights;
  float scale;
  bool add;
  float* x;
  NextNorm next;
  std::uint32_t num_next_sums;  // of a row
};

#ifdef INFERNO_SM90A

// For each tile of a block all chosen experts, and of each its pairs, a few at a time.
class ExpertWalk {
 public:
  __device__ ExpertWalk(const Plan& plan, const Cut& cut)
      : plan_(plan), cut_(cut), tile_(plan.num_chosen > 0 ? blockIdx.x : cut.column_tiles) {}

  __device__ bool exists() const { return tile_ < cut_.column_tiles; }
  __device__ void advance() {
    row_ += cut_.rows;
    if (row_ < count()) return;
    row_ = 0;
    if (++nth_ < plan_.num_chosen) return;
    nth_ = 0;
    tile_ += gridDim.x;
  }
  __device__ std::uint32_t expert() const { return plan_.chosen[nth_]; }
  __device__ std::uint32_t first_row() const { return plan_.firsts[nth_] + row_; }
  __device__ std::uint32_t num_rows() const { return min(count() - row_, cut_.rows); }
  __device__ std::uint32_t column_tile() const { return tile_; }

 private:
  __device__ std::uint32_t count() const { return plan_.counts[nth_]; }

  const Plan& plan_;
  Cut cut_;
  std::uint32_t tile_;
  std::uint32_t nth_ = 0;
  std::uint32_t row_ = 0;
};

// kGroups: of 8 tokens.
template <typename Element, int kMatrices, int kGroups>
class Consumer : Multiplier<Element, kMatrices, kGroups, Ring<kMatrices, 1>> {
 public:
  __device__ Consumer(const DecodeArgs& args, const Shared& shared)
      : Base(shared), args_(args), num_columns_(args.stream.num_columns) {}

  __device__ void run() {
    const std::uint32_t step = gridDim.x;
    ExpertWalk walk(*shared_.plan, args_.stream.cut);
    for (std::uint32_t tile = blockIdx.x; tile < args_.stream.cut.column_tiles; tile += step) {
      Outputs outputs;
      load_outputs(tile, outputs);
      Sums sums{};
      for (; walk.exists() && walk.column_tile() == tile; walk.advance())
        multiply_expert(walk, sums);
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        if (group * 8 >= num_tokens()) break;
        this->meet(sums, group);
        finish(tile, group, outputs);
      }
    }
  }

 private:
  using Ring = experts::Ring<kMatrices, 1>;
  using Base = Multiplier<Element, kMatrices, kGroups, Ring>;
  using Sums = typename Base::Sums;
  using Base::at_;
  using Base::lane_;
  using Base::shared_;
  using Base::warp_;
  static constexpr std::uint32_t kTileRows = kMatrices * 16;
  static constexpr std::uint32_t kPartRows = 16;  // of a partial sum of squares
  // Of a group, that a thread finishes.
  static constexpr std::uint32_t kOutputs =
      (kTileRows * 8 + kConsumerThreads - 1) / kConsumerThreads;
  // What a thread knows of its outputs before their sums are there.
  struct Outputs {
    float before[kGroups][kOutputs];
    float next_weight[kOutputs];
  };

  __device__ std::uint32_t num_tokens() const {
    return args_.stream.routing.num_pairs / args_.stream.routing.experts_per_token;
  }

  // Rows of x are where their token is among those of the expert; a token that is not has zeros.
  __device__ void multiply_expert(const ExpertWalk& walk, Sums& sums) {
    const bool is_row = lane_ < walk.num_rows();
    const std::uint32_t token =
        is_row ? shared_.order[walk.first_row() + lane_] / args_.stream.routing.experts_per_token
               : 0;
    const std::uint32_t tokens = __reduce_or_sync(kAllLanes, is_row ? 1U << token : 0U);
    std::uint32_t row_of[kGroups];  // or none
    bool exists[kGroups];
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const std::uint32_t mine = 1U << (group * 8 + lane_ % 8);
      exists[group] = (tokens & mine) != 0;
      row_of[group] = __popc(tokens & (mine - 1));
    }
    for (std::uint32_t column = 0; column < num_columns_; column += Ring::kStageColumns) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      this->for_each_turn(column, num_columns_, [&](std::uint32_t turn) {
        std::uint32_t rows[kGroups];
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          rows[group] = exists[group]
                            ? shared_.rows +
                                  (at_.stage * Ring::kRows + row_of[group]) * Ring::kRowBytes +
                                  this->column_offset(turn)
                            : shared_.zeros;
        }
        this->multiply(turn, rows, sums);
      });
      this->give_back();
    }
  }

  // A thread's i-th output of a group.
  struct Place {
    std::uint32_t row, column, output;
    bool exists;
  };
  __device__ Place place(std::uint32_t tile, std::uint32_t group, std::uint32_t i) const {
    const std::uint32_t index = i * kConsumerThreads + threadIdx.x;
    Place at{index % kTileRows, index / kTileRows, tile * kTileRows + index % kTileRows, false};
    at.exists = at.column < 8 && group * 8 + at.column < num_tokens() &&
                at.output < args_.stream.num_outputs;
    return at;
  }
  __device__ std::size_t index_of(std::uint32_t group, const Place& at) const {
    return std::size_t{group * 8 + at.column} * args_.stream.num_outputs + at.output;
  }

  __device__ void load_outputs(std::uint32_t tile, Outputs& outputs) const {
#pragma unroll
    for (std::uint32_t i = 0; i < kOutputs; ++i) {
      const std::uint32_t output = place(tile, 0, i).output;
      const bool weighs = args_.next.weight != nullptr && output < args_.stream.num_outputs;
      outputs.next_weight[i] = weighs ? args_.next.weight[output] : 0.0F;
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        const Place at = place(tile, group, i);
        const bool adds = args_.add && at.exists;
        outputs.before[group][i] = adds ? args_.x[index_of(group, at)] : 0.0F;
      }
    }
  }

  __device__ float bias_of(std::uint32_t token, std::uint32_t output) const {
    float sum = 0.0F;
    const PairRouting& routing = args_.stream.routing;
    for (std::uint32_t i = 0; i < routing.experts_per_token; ++i) {
      const std::uint32_t pair = token * routing.experts_per_token + i;
      const std::uint32_t expert = routing.expert_ids[pair];
      if (expert >= routing.num_experts) continue;
      const float bias = args_.stream.bias[std::size_t{expert} * args_.stream.num_outputs + output];
      sum += args_.weights[pair] * bias;
    }
    return sum;
  }

  __device__ void finish(std::uint32_t tile, std::uint32_t group, const Outputs& outputs) const {
#pragma unroll
    for (std::uint32_t i = 0; i < kOutputs; ++i) {
      const Place at = place(tile, group, i);
      float value = 0.0F;
      if (at.exists) {
        float sum = this->sum_of(at.row / Ring::kRunRows, at.row % Ring::kRunRows, at.column);
        if (args_.stream.bias != nullptr) sum += bias_of(group * 8 + at.column, at.output);
        value = outputs.before[group][i] + args_.scale * sum;
        args_.x[index_of(group, at)] = value;
        if (args_.next.weight != nullptr) {
          static_cast<Element*>(args_.next.h)[index_of(group, at)] =
              from_float<Element>(value * outputs.next_weight[i]);
        }
      }
      if (args_.next.weight != nullptr) store_squares(group, at, value * value);
    }
  }

  // Sixteen neighbouring threads have the rows of one partial sum.
  __device__ void store_squares(std::uint32_t group, const Place& at, float squares) const {
    static_assert(kTileRows % kPartRows == 0);
    for (int lane = 1; lane < 16; lane *= 2) squares += __shfl_xor_sync(kAllLanes, squares, lane);
    if (lane_ % kPartRows != 0 || !at.exists) return;
    args_.next.square_sums[(group * 8 + at.column) * args_.num_next_sums + at.output / kPartRows] =
        squares;
  }

  const DecodeArgs& args_;
  std::uint32_t num_columns_;
};

#endif  // INFERNO_SM90A

template <typename Element, int kMatrices, int kGroups>
__global__ void __launch_bounds__(kThreads, 2)
    decode_kernel(const __grid_constant__ DecodeArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = experts::Ring<kMatrices, 1>;
  const Shared shared = prepare_block<Ring>(args.stream, dynamic);
  if (threadIdx.x >= kConsumerThreads) {
    Producer<Ring, ExpertWalk>(args.stream, shared).run();
    return;
  }
  wait_for_previous();
  Consumer<Element, kMatrices, kGroups>(args, shared).run();
#endif
}

struct Variant {
  void (*kernel)(DecodeArgs);
  std::uint32_t shared_bytes;
  std::uint32_t matrices;
  std::uint32_t groups;
  std::uint32_t boxes;
};

template <typename Element, int kMatrices, int kGroups>
constexpr Variant kVariant = {decode_kernel<Element, kMatrices, kGroups>,
                              Ring<kMatrices, 1>::kSharedBytes, kMatrices, kGroups,
                              Ring<kMatrices, 1>::kBoxes};

template <typename Element>
constexpr Variant kVariants[] = {
    kVariant<Element, 1, 1>, kVariant<Element, 2, 1>, kVariant<Element, 3, 1>,
    kVariant<Element, 1, 2>, kVariant<Element, 2, 2>, kVariant<Element, 3, 2>,
    kVariant<Element, 1, 4>, kVariant<Element, 2, 4>, kVariant<Element, 3, 4>};

std::span<const Variant> variants_of(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kVariants<__nv_bfloat16>) : std::span(kVariants<__half>);
}

// The tile height that gives the fullest multiprocessor least to do; of equals the largest.
const Variant& variant_of(const ExpertsDecode& product, std::uint32_t num_sms) {
  const std::uint32_t tokens = product.routing.num_pairs / product.routing.experts_per_token;
  const std::uint32_t groups = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
  const auto most = [&](const Variant& variant) {
    const std::uint32_t height = 16 * variant.matrices;
    return divide_up(divide_up(product.down.shape.num_rows, height), num_sms) * height;
  };
  const Variant* best = nullptr;
  for (const Variant& variant : variants_of(product.down.shape.dtype())) {
    if (variant.groups != groups) continue;
    if (best == nullptr || most(variant) <= most(*best)) best = &variant;
  }
  return *best;
}

}  // namespace

ExpertsDecodeKernel::ExpertsDecodeKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const Variant& variant : variants_of(dtype)) {
      available_ = available_ && prepare(variant.kernel, variant.shared_bytes);
      if (!available_) return;
    }
  }
}

void ExpertsDecodeKernel::operator()(const CudaOp& op, const ExpertsDecode& product) const {
  const WeightShape& shape = product.down.shape;
  const Variant& variant = variant_of(product, op.num_sms);
  DecodeArgs args{};
  StreamArgs& stream = args.stream;
  stream.weight_map =
      stack_map(stack_of(product.down, product.routing), variant.matrices * 8, variant.boxes);
  stream.routing = product.routing;
  stream.routed = true;
  stream.x = product.gated;
  stream.row_divisor = 1;
  stream.num_columns = shape.num_columns;
  stream.outputs_per_tile = variant.matrices * 16;
  stream.second_run = variant.matrices * 8;
  stream.cut = {8, divide_up(shape.num_rows, stream.outputs_per_tile)};
  stream.bias = product.down.bias;
  stream.num_outputs = shape.num_rows;
  args.weights = product.weights;
  args.scale = product.scale;
  args.add = product.add;
  args.x = product.x;
  args.next = product.next;
  args.num_next_sums = norm_parts(shape.num_rows);
  const std::uint32_t blocks = std::min(op.num_sms, stream.cut.column_tiles);
  launch(op, variant.kernel, {blocks, kThreads, variant.shared_bytes}, args);
}

}  // namespace inferno::ops::cuda
