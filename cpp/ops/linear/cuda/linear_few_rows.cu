// Products of few rows of elements at the memory's pace: two warpgroups multiply, 64 rows of W
// being the rows of a wgmma, tokens its columns. linear_boxes.cuh has how W is streamed.
#include <algorithm>
#include <span>

#include "ops/linear/cuda/linear_handover.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace boxes;

template <int kTokensOf>
struct ElementStage {
  static constexpr int kTokens = kTokensOf;
  static constexpr std::uint32_t kSets = 1;
  static constexpr std::uint32_t kFinishers = 0;
  static constexpr std::uint32_t kPlaces = 2;
  static constexpr std::uint32_t kColumns = kBoxColumns;
  static constexpr std::uint32_t kWeightBytes = kTileRows * kBoxRowBytes;
  static constexpr std::uint32_t kKeptBytes = 0;

#ifdef INFERNO_SM90A
  __device__ static std::uint32_t weight_bytes(const FewRowsArgs& args) {
    return args.warps_per_tile * kWarpRows * kBoxRowBytes;
  }
  __device__ static void copy_weights(const FewRowsArgs& args, const BoxWalk& walk,
                                      std::uint32_t to, std::uint64_t* full, std::uint64_t policy) {
    const std::uint32_t column = walk.box() * kColumns;
    const std::uint32_t output = first_output(args, walk.tile(), 0);
    if (args.epilogue.kind == Epilogue::Gate) {
      copy_paired_box(to, &args.weight_map, {column, output / kPairRows}, full, policy);
    } else {
      copy_box(to, &args.weight_map, {column, output}, full, policy);
    }
  }
#endif
};

#ifdef INFERNO_SM90A

template <typename Element, int kTokens, bool kExtras>
class Consumer {
 public:
  __device__ Consumer(const FewRowsArgs& args, const Shared& shared)
      : shared_(shared), handover_(args, shared, threadIdx.x / 32) {}

  __device__ void run() {
    handover_.run(
        [this](const Tiles& tiles, float(&sums)[kCount]) { multiply(tiles.num_boxes(), sums); });
  }

 private:
  using Stage = ElementStage<kTokens>;
  using Ring = boxes::Ring<Stage>;
  static constexpr int kSteps = kBoxColumns / 16;
  static constexpr std::uint32_t kGroupRows = 64;  // of a warpgroup's products
  static constexpr int kCount = kTokens / 2;       // sums of a thread

  // A stage is given back when the products after it have begun, so the tensor cores never rest.
  __device__ void multiply(std::uint32_t num_boxes, float (&sums)[kCount]) {
    std::uint32_t before = at_.stage;
    for (std::uint32_t box = 0; box < num_boxes; ++box) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      multiply_stage(at_.stage, sums);
      if (box > 0) {
        wgmma_wait<1>();
        give_back(before);
      }
      before = at_.stage;
      at_.advance();
    }
    wgmma_wait<0>();
    hold(sums);
    if (num_boxes > 0) give_back(before);
  }

  // A warpgroup multiplies its 64 rows of W, of which nobody uses those that a tile lacks.
  __device__ void multiply_stage(std::uint32_t stage, float (&sums)[kCount]) const {
    const std::uint64_t stage_at =
        advanced(matrix_descriptor(shared_.ring, 0), stage * Ring::kStageBytes);
    const std::uint64_t weights = advanced(stage_at, threadIdx.x / 128 * kGroupRows * kBoxRowBytes);
    const std::uint64_t input = advanced(stage_at, Stage::kWeightBytes);
    wgmma_fence();
    hold(sums);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      wgmma_rows<Element, false>(sums, advanced(weights, step * 32), advanced(input, step * 32));
    }
    wgmma_commit();
  }

  __device__ void give_back(std::uint32_t stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&shared_.empty[stage]);
  }

  const Shared& shared_;
  Handover<Element, Stage, kExtras> handover_;
  RingPosition<Ring::kStages> at_;
};

#endif  // INFERNO_SM90A

template <typename Element, int kTokens, bool kExtras>
__global__ void __launch_bounds__(kThreads<ElementStage<kTokens>>, 1)
    few_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  run_block<ElementStage<kTokens>, Consumer<Element, kTokens, kExtras>>(args);
#endif
}

template <typename Element, int kTokens, bool kExtras>
constexpr Variant kVariant = {few_rows_kernel<Element, kTokens, kExtras>,
                              kThreads<ElementStage<kTokens>>,
                              Ring<ElementStage<kTokens>>::kSharedBytes, kTokens};

template <typename Element, bool kExtras>
constexpr Variant kVariants[] = {kVariant<Element, 8, kExtras>,  kVariant<Element, 16, kExtras>,
                                 kVariant<Element, 24, kExtras>, kVariant<Element, 32, kExtras>,
                                 kVariant<Element, 48, kExtras>, kVariant<Element, 64, kExtras>};

std::span<const Variant> variants_of(Dtype dtype, bool extras) {
  if (dtype == Dtype::BF16) {
    return extras ? std::span(kVariants<__nv_bfloat16, true>)
                  : std::span(kVariants<__nv_bfloat16, false>);
  }
  return extras ? std::span(kVariants<__half, true>) : std::span(kVariants<__half, false>);
}

const Variant& variant_of(const FewRowsProduct& product) {
  return *std::ranges::find_if(
      variants_of(product.in.dtype, has_extras(product)),
      [&](const Variant& variant) { return product.in.num_tokens <= variant.max_tokens; });
}

}  // namespace

std::uint32_t boxes::clusters_at_once(const CudaOp& op, const Variant& variant,
                                      std::uint32_t blocks) {
  if (!prepare(variant.kernel, variant.shared_bytes)) return 0;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(op.num_sms / blocks * blocks);
  config.blockDim = dim3(variant.threads);
  config.dynamicSmemBytes = variant.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, variant.kernel, &config),
        "cudaOccupancyMaxActiveClusters");
  return static_cast<std::uint32_t>(clusters);
}

FewRowsArgs boxes::few_rows_args(const FewRowsProduct& product, std::uint32_t box_columns,
                                 std::uint32_t num_clusters) {
  FewRowsArgs args{};
  args.input = product.in.h;
  args.num_columns = product.weight.num_columns;
  args.epilogue = epilogue_args(product);
  args.outputs_per_warp = product.epilogue == Epilogue::Gate ? kWarpRows / 2 : kWarpRows;
  const std::uint32_t warps = divide_up(args.epilogue.num_outputs, args.outputs_per_warp);
  const std::uint32_t rounds = divide_up(divide_up(warps, kConsumers), num_clusters);
  args.warps_per_tile = divide_up(warps, rounds * num_clusters);
  args.num_tiles = divide_up(warps, args.warps_per_tile);
  args.boxes_per_tile = divide_up(product.weight.num_columns, box_columns);
  args.next_square_sums = product.next.weight == nullptr ? nullptr : product.next.square_sums;
  args.num_next_sums = norm_parts(args.epilogue.num_outputs);
  return args;
}

void boxes::launch_few_rows(const CudaOp& op, const Variant& variant, const FewRowsArgs& args,
                            std::uint32_t num_clusters) {
  const std::uint32_t blocks = std::min(num_clusters, args.num_tiles) * kCluster;
  launch(op, variant.kernel, {blocks, variant.threads, variant.shared_bytes, kCluster}, args);
}

FewRowsKernel::FewRowsKernel(const CudaOp& op) {
  if (!op.dependent_launch) return;
  std::uint32_t clusters = op.num_sms;
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const bool extras : {false, true}) {
      for (const Variant& variant : variants_of(dtype, extras)) {
        clusters = std::min(clusters, clusters_at_once(op, variant));
      }
    }
  }
  num_clusters_ = clusters;
}

void FewRowsKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const Variant& variant = variant_of(product);
  const DeviceMatrix input{product.in.h, product.in.num_tokens, weight.num_columns,
                           product.in.dtype};
  const bool gate = product.epilogue == Epilogue::Gate;
  FewRowsArgs args = few_rows_args(product, kBoxColumns, num_clusters_);
  const std::uint32_t rows = args.warps_per_tile * kWarpRows;
  args.weight_map = gate ? paired_map(weight, rows) : box_map(weight, rows);
  args.input_map = box_map(input, variant.max_tokens);
  launch_few_rows(op, variant, args, num_clusters_);
}

}  // namespace inferno::ops::cuda
