// Products of many rows with each expert's matrix: tiles of 128 rows of x and twice 32, 64 or 128
// rows of weights, by wgmma.
//
// Blocks stay, and take each gridDim.x-th tile; the tiles that share weights are neighbours, so
// that these come from memory once. One warp brings 64 columns of the weights after the other into
// shared memory, and of the rows of x where these lie sorted; rows of tokens are fetched by three
// warps more. Two warpgroups multiply 64 rows each. An expert whose last tile has 64 rows or fewer
// leaves the second one out, and the first has the tensor cores for itself; otherwise the second
// begins a stage late, so that one multiplies while the other stores. The two runs of weights are
// the same outputs' gate and up, or neighbours; so a thread that has a gate's sum has that of up.
//
// Batch invariance: a row's sum goes through K in order, whoever shares its tile and however many
// rows of weights this has.
#include <algorithm>
#include <span>
#include <stdexcept>

#include "ops/experts/cuda/experts_tiles.cuh"
#include "ops/glu/activation.cuh"
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace experts;

#ifdef INFERNO_SM90A

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
template <typename Element, int kRunRows, bool kGate>
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
      float sums[2 * kSums];
      multiply(sums, tile.num_rows() > kGroupRows && staggers());
      finish(tile, *reinterpret_cast<Run*>(sums), *reinterpret_cast<Run*>(sums + kSums));
    }
  }

 private:
  using Ring = TilesRing<kRunRows>;
  static constexpr int kSums = Ring::kSums;
  using Run = float[kSums];
  static constexpr int kBothGroups = kWarps * 32;     // threads
  static constexpr std::uint32_t kFirstHasBegun = 1;  // barrier

  // Whether the ring orders one tile's arrival at the barrier before the next one's: the first
  // group begins a tile only when both have given the tile's before first stage back.
  __device__ bool staggers() const { return args_.num_columns >= Ring::kStages * kBoxColumns; }

  // Gives stages back unread.
  __device__ void pass() {
    for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      give_back(at_.stage);
      at_.advance();
    }
  }

  // A stage is given back as soon as its products are there: while this group waits for them, the
  // other one's are under way.
  __device__ void multiply(float (&sums)[2 * kSums], bool staggered) {
    if (staggered && group_ == 1) named_sync<kBothGroups>(kFirstHasBegun);
    for (std::uint32_t column = 0; column < args_.num_columns; column += kBoxColumns) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      if (column == 0) {
        multiply_stage<true>(sums);
        if (staggered && group_ == 0) named_arrive<kBothGroups>(kFirstHasBegun);
      } else {
        multiply_stage<false>(sums);
      }
      wgmma_wait<0>();
      hold(sums);
      give_back(at_.stage);
      at_.advance();
    }
  }

  // Both runs of weights lie one after the other: they are one factor.
  template <bool kFirst>
  __device__ void multiply_stage(float (&sums)[2 * kSums]) const {
    const std::uint64_t stage =
        advanced(matrix_descriptor(shared_.ring, 0), at_.stage * Ring::kStageBytes);
    const std::uint64_t rows = advanced(stage, group_ * kGroupBytes);
    const std::uint64_t weights = advanced(stage, kInputBytes);
    if constexpr (kGate) fence_async_proxy();  // rows came as ordinary writes
    wgmma_fence();
    hold(sums);
    wgmma_rows<Element, kFirst>(sums, rows, weights);
#pragma unroll
    for (std::uint32_t step = 1; step < kBoxColumns / 16; ++step) {
      wgmma_rows<Element, false>(sums, advanced(rows, step * 32), advanced(weights, step * 32));
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
      scale_rows(tile, first, second);
      add_bias(tile.expert(), output, first);
      add_bias(tile.expert(), args_.num_outputs + output, second);
      activate(first, second);
      store(tile, output, first);
    } else {
      add_bias(tile.expert(), output, first);
      add_bias(tile.expert(), output + kRunRows, second);
      store(tile, output, first);
      store(tile, output + kRunRows, second);
    }
  }

  // A thread's first row in the tile; the other is 8 below.
  __device__ std::uint32_t row() const { return group_ * kGroupRows + warp_ * 16 + lane_ / 4; }

  __device__ void scale_rows(const TileWalk& tile, float (&first)[kSums],
                             float (&second)[kSums]) const {
    if (args_.square_sums == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = scale_of(tile.first_row() + min(row() + half * 8, tile.num_rows() - 1));
#pragma unroll
      for (int i = half * 2; i < kSums; i += 4) {
        first[i] *= scale;
        first[i + 1] *= scale;
        second[i] *= scale;
        second[i + 1] *= scale;
      }
    }
  }

  // What deferred normalisation multiplies a sorted row's products by. By the row's four lanes.
  __device__ float scale_of(std::uint32_t row) const {
    const std::size_t token = args_.sorted.order[row] / args_.experts_per_token;
    const float* squares = args_.square_sums + token * args_.num_square_sums;
    float sum = 0.0F;
    for (std::uint32_t i = lane_ % 4; i < args_.num_square_sums; i += 4) sum += squares[i];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return 1.0F / sqrtf(sum / static_cast<float>(args_.num_columns) + args_.eps);
  }

  template <ActivationKind kKind>
  __device__ void activate_as(float (&gate)[kSums], const float (&up)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      gate[i] = activated_as(kKind, args_.activation, gate[i], up[i]);
    }
  }
  __device__ void activate(float (&gate)[kSums], const float (&up)[kSums]) const {
    switch (args_.activation.kind) {
      case ActivationKind::GeluTanh:
        return activate_as<ActivationKind::GeluTanh>(gate, up);
      case ActivationKind::ClampedSilu:
        return activate_as<ActivationKind::ClampedSilu>(gate, up);
      default:
        return activate_as<ActivationKind::Silu>(gate, up);
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
#pragma unroll
    for (std::uint32_t half = 0; half < 2; ++half) {
      const std::uint32_t at = row() + half * 8;
      const bool exists = at < tile.num_rows();
      Element* to =
          static_cast<Element*>(args_.out) + std::size_t{tile.first_row() + at} * args_.num_outputs;
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
  RingPosition<Ring::kStages> at_;
};

#endif  // INFERNO_SM90A

template <typename Element, int kRunRows, bool kGate>
__global__ void __launch_bounds__(kBlockThreads<kGate>, 1)
    tiles_kernel(const __grid_constant__ TilesArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = TilesRing<kRunRows>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ Plan plan;
  const std::uint32_t base = shared_address(dynamic);
  const TilesShared shared{full, empty,
                           (base + kRingAlignment - 1) / kRingAlignment * kRingAlignment, &plan};
  const bool produces = threadIdx.x == kProducer;
  if (produces) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], kGate ? 1 + kNumGatherers : 1);
      init_barrier(&empty[stage], kWarps);
    }
    fence_barrier_init();
    prefetch_map(&args.weight_map);
    if constexpr (!kGate) prefetch_map(&args.input_map);
  }
  if (!args.routed) wait_for_previous();
  for (std::uint32_t i = threadIdx.x; i <= args.num_experts; i += kBlockThreads<kGate>) {
    plan.starts[i] = __ldcg(args.sorted.starts + i);
  }
  __syncthreads();
  if (threadIdx.x < 32) list_tiles(plan, args.num_experts, args.cut);
  __syncthreads();
  if constexpr (kGate) {
    if (threadIdx.x >= kGatherers) return TilesGatherer<kRunRows>(args, shared).run();
  }
  if (threadIdx.x >= kProducer) {
    if (produces) TilesProducer<kRunRows, kGate>(args, shared).run();
    return;
  }
  wait_for_previous();
  TilesConsumer<Element, kRunRows, kGate>(args, shared).run();
#endif
}

struct TilesVariant {
  void (*kernel)(TilesArgs);
  std::uint32_t threads;
  std::uint32_t shared_bytes;
  std::uint32_t run_rows;
  bool gate;
};

template <typename Element, int kRunRows, bool kGate>
constexpr TilesVariant kTilesVariant = {tiles_kernel<Element, kRunRows, kGate>,
                                        kBlockThreads<kGate>, TilesRing<kRunRows>::kSharedBytes,
                                        kRunRows, kGate};

template <typename Element>
constexpr TilesVariant kTilesVariants[] = {
    kTilesVariant<Element, 32, true>,  kTilesVariant<Element, 64, true>,
    kTilesVariant<Element, 128, true>, kTilesVariant<Element, 32, false>,
    kTilesVariant<Element, 64, false>, kTilesVariant<Element, 128, false>};

std::span<const TilesVariant> tiles_variants_of(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kTilesVariants<__nv_bfloat16>)
                              : std::span(kTilesVariants<__half>);
}

std::uint32_t outputs_per_tile(const TilesVariant& variant) {
  return variant.gate ? variant.run_rows : 2 * variant.run_rows;
}

// The largest tiles of which there is one for each multiprocessor, or the smallest.
const TilesVariant& tiles_variant_of(const ExpertsProduct& product, std::uint32_t num_sms) {
  const PairRouting& routing = product.routing;
  const std::uint32_t row_tiles =
      std::max(routing.num_pairs / kRows, std::min(routing.num_pairs, routing.num_experts));
  const TilesVariant* best = nullptr;
  for (const TilesVariant& variant : tiles_variants_of(product.weight.shape.dtype())) {
    if (variant.gate != product.gate) continue;
    const std::uint32_t tiles =
        row_tiles * divide_up(product.num_outputs(), outputs_per_tile(variant));
    if (best == nullptr || tiles >= num_sms) best = &variant;
  }
  return *best;
}

}  // namespace

ExpertsTilesKernel::ExpertsTilesKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const TilesVariant& variant : tiles_variants_of(dtype)) {
      available_ = available_ && prepare(variant.kernel, variant.shared_bytes);
      if (!available_) return;
    }
  }
}

void ExpertsTilesKernel::operator()(const CudaOp& op, const ExpertsProduct& product) const {
  if (product.token_rows != product.gate) {
    throw std::invalid_argument("other: experts: tiles take rows of tokens where they gate only");
  }
  const WeightShape& shape = product.weight.shape;
  const PairRouting& routing = product.routing;
  const TilesVariant& variant = tiles_variant_of(product, op.num_sms);
  TilesArgs args{};
  args.weight_map = stack_map(stack_of(product.weight, routing), variant.run_rows, 1);
  if (!product.gate) {
    const DeviceMatrix input{product.x, routing.num_pairs, shape.num_columns, shape.dtype()};
    args.input_map = box_map(input, kGroupRows);
    args.few_map = box_map(input, kFewRows);
  }
  args.x = product.x;
  args.num_experts = routing.num_experts;
  args.experts_per_token = routing.experts_per_token;
  args.sorted = product.sorted;
  args.outputs_per_tile = outputs_per_tile(variant);
  args.second_run = product.gate ? shape.num_rows / 2 : variant.run_rows;
  args.num_columns = shape.num_columns;
  args.num_outputs = product.num_outputs();
  args.cut = {kRows, divide_up(args.num_outputs, args.outputs_per_tile)};
  args.activation = product.activation;
  args.bias = product.weight.bias;
  args.square_sums = product.square_sums;
  args.num_square_sums = product.num_square_sums;
  args.eps = product.eps;
  args.routed = product.routed;
  args.out = product.out;
  const std::uint64_t row_tiles = routing.num_pairs / kRows + std::uint64_t{routing.num_experts};
  const auto blocks = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(op.num_sms, row_tiles * args.cut.column_tiles));
  launch(op, variant.kernel, {blocks, variant.threads, variant.shared_bytes}, args);
}

}  // namespace inferno::ops::cuda
