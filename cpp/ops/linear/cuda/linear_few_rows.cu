// Products of few rows at the memory's pace.
//
// A cluster of eight blocks computes one tile of 128 rows of W after the other, each block with an
// eighth of the columns. In a block one warp streams its boxes of W and of the input through a ring
// in shared memory; it fills the ring before it waits for the kernel before this one, since
// weights are constant. Two warpgroups multiply: 64 rows of W are the rows of a wgmma, tokens its
// columns. Then every warp hands its sums to one of the blocks, through distributed shared memory:
// the sums of all warps number r meet in block r, which adds them in the order of the columns and
// finishes these 16 outputs. It does so after its products for the next tile, so that nobody waits
// for sums on their way but at the end.
//
// Sums have two places in turn. One is free again when its block has finished a tile, before it
// hands over the next; so who has all sums of that next tile may write there.
//
// Batch invariance: cuts depend on the weight's shape only, and the sum of an output goes through
// its columns in order, cut by cut. So a row's bits are the same alone and beside others.
#include <algorithm>
#include <span>

#include "ops/linear/cuda/linear_boxes.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace boxes;

#ifdef INFERNO_SM90A

template <typename Element, int kTokens, bool kExtras>
class Consumer {
 public:
  __device__ Consumer(const FewRowsArgs& args, const Shared& shared)
      : args_(args),
        shared_(shared),
        rank_(cluster_rank()),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  // By all consumer warps.
  __device__ void run() {
    load_scales();
    Outputs outputs;
    std::uint32_t done = 0;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance(), ++done) {
      Sums sums{};
      multiply(tiles.num_boxes(), sums.all);
      if (done > 0) finish(outputs, done - 1);
      barrier();
      hand_over(sums, done);
      load_outputs(tiles.tile(), outputs);
    }
    finish(outputs, done - 1);
  }

 private:
  using Ring = boxes::Ring<kTokens>;
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr int kSteps = kBoxColumns / 16;
  // A thread's, four of each group: output r of tokens t and t + 1, output r + 8 of the same; of
  // Gate, gate and up of output r.
  struct Sums {
    float all[kGroups * 4];
    __device__ float4 of(std::uint32_t group) const {
      return {all[group * 4], all[group * 4 + 1], all[group * 4 + 2], all[group * 4 + 3]};
    }
  };
  // What a thread knows of the outputs that it finishes before their sums are there: those of warp
  // number rank_, of the group of tokens warp_.
  struct Outputs {
    std::uint32_t first;  // r
    float before[4];      // of Add: x
    OutputConstants constants[2];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  // A warp has every kConsumers-th token; the loads of all are under way together.
  __device__ void load_scales() const {
    float scales[kTokens / kConsumers];
    row_scales<kExtras>(args_.epilogue, warp_, kConsumers, scales);
#pragma unroll
    for (int i = 0; i < kTokens / kConsumers; ++i) {
      if (lane_ == 0) shared_.scale[warp_ + i * kConsumers] = scales[i];
    }
    barrier();
  }

  // A stage is given back when the products after it have begun, so the tensor cores never rest.
  __device__ void multiply(std::uint32_t num_boxes, float (&sums)[kGroups * 4]) {
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

  // A warpgroup multiplies its 64 rows of W.
  __device__ void multiply_stage(std::uint32_t stage, float (&sums)[kGroups * 4]) const {
    const std::uint64_t stage_at =
        advanced(matrix_descriptor(shared_.ring, 0), stage * Ring::kStageBytes);
    const std::uint64_t weights = advanced(stage_at, warp_ / 4 * kGroupRows * kBoxRowBytes);
    const std::uint64_t input = advanced(stage_at, kWeightBytes);
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
    if (lane_ == 0) arrive(&shared_.empty[stage]);
  }

  // To the block that finishes this warp's outputs.
  __device__ void hand_over(const Sums& sums, std::uint32_t nth) const {
    const std::uint32_t to = address_in(warp_, shared_address(place(nth, rank_, 0)));
    const std::uint32_t handed = address_in(warp_, shared_address(&shared_.handed[nth % 2]));
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      send(to + group * 32 * sizeof(float4), sums.of(group), handed);
    }
  }

  // Where this thread's sums of a group are from one of the blocks.
  __device__ float4* place(std::uint32_t nth, std::uint32_t block, std::uint32_t group) const {
    return shared_.sums + ((nth % 2 * kCluster + block) * kGroups + group) * 32 + lane_;
  }

  // Of an output's i-th sum.
  __device__ std::uint32_t token(int i) const { return warp_ * 8 + lane_ % 4 * 2 + i % 2; }

  __device__ bool exists(std::uint32_t t, std::uint32_t output) const {
    return t < args_.epilogue.num_tokens && output < args_.epilogue.num_outputs;
  }

  __device__ void load_outputs(std::uint32_t tile, Outputs& outputs) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    outputs.first = (tile * kCluster + rank_) * (args_.outputs_per_tile / kCluster) + lane_ / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t output = outputs.first + i / 2 * 8;
      const bool adds = epilogue.kind == Epilogue::Add && exists(token(i), output);
      outputs.before[i] = adds ? load_output(epilogue, token(i), output) : 0.0F;
    }
    outputs.constants[0] = constants_of<kExtras>(epilogue, outputs.first);
    outputs.constants[1] = constants_of<kExtras>(epilogue, outputs.first + 8);
  }

  // By all warps, of which one finishes each group of tokens.
  __device__ void finish(const Outputs& outputs, std::uint32_t nth) const {
    if (warp_ >= kGroups) return;
    wait_barrier(&shared_.handed[nth % 2], nth / 2 % 2);
    if (threadIdx.x == 0) arrive_expecting(&shared_.handed[nth % 2], Ring::kPlaceBytes);
    float sums[4] = {};
#pragma unroll
    for (std::uint32_t block = 0; block < kCluster; ++block) {
      const float4 part = *place(nth, block, warp_);
      sums[0] += part.x;
      sums[1] += part.y;
      sums[2] += part.z;
      sums[3] += part.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] *= shared_.scale[token(i)];
    if (args_.epilogue.kind == Epilogue::Gate) {
      finish_pairs(outputs.first, sums);
    } else {
      finish_sums(outputs, sums);
    }
  }

  __device__ void finish_sums(const Outputs& outputs, const float (&sums)[4]) const {
    float squares[2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t output = outputs.first + i / 2 * 8;
      if (!exists(token(i), output)) continue;
      const OutputConstants& constants = outputs.constants[i / 2];
      squares[i % 2] += finish_output<Element>(args_.epilogue, token(i), output,
                                               outputs.before[i] + sums[i] + constants.bias,
                                               constants.next_weight);
    }
    if (args_.next_square_sums == nullptr) return;
    store_squares(outputs.first, token(0), squares[0]);
    store_squares(outputs.first, token(1), squares[1]);
  }

  __device__ void finish_pairs(std::uint32_t output, const float (&sums)[4]) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    if (output >= epilogue.num_outputs) return;
    const float gate_bias = bias_of<kExtras>(epilogue, output);
    const float up_bias = bias_of<kExtras>(epilogue, epilogue.num_outputs + output);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token(i) >= epilogue.num_tokens) continue;
      finish_gated<Element, kExtras>(epilogue, token(i), output, sums[i] + gate_bias,
                                     sums[i + 2] + up_bias);
    }
  }

  // The warp's outputs make one partial sum; lanes of equal lane % 4 have the same token.
  __device__ void store_squares(std::uint32_t first, std::uint32_t t, float squares) const {
    static_assert(kTileRows / kCluster == kNormPartRows);
    for (int lane = 4; lane < 32; lane *= 2) squares += __shfl_xor_sync(~0U, squares, lane);
    const std::uint32_t part = first / kNormPartRows;
    if (lane_ >= 4 || t >= args_.epilogue.num_tokens || part >= args_.num_next_sums) return;
    args_.next_square_sums[std::size_t{t} * args_.num_next_sums + part] = squares;
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t rank_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<Ring::kStages> at_;
};

#endif  // INFERNO_SM90A

template <typename Element, int kTokens, bool kExtras>
__global__ void __launch_bounds__(kThreads, 1)
    few_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = boxes::Ring<kTokens>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ std::uint64_t handed[2];
  __shared__ float scale[kTokens];
  const std::uint32_t base = shared_address(dynamic);
  const std::uint32_t ring = (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  float4* sums =
      reinterpret_cast<float4*>(dynamic + (ring - base) + Ring::kStages * Ring::kStageBytes);
  const Shared shared{full, empty, handed, ring, sums, scale};
  const bool produces = threadIdx.x == kConsumerThreads;
  if (produces) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumers);
    }
    for (std::uint64_t& barrier : handed) {
      init_barrier(&barrier, 1);
      arrive_expecting(&barrier, Ring::kPlaceBytes);
    }
    fence_barrier_init();
  }
  arrive_at_cluster();
  if (threadIdx.x >= kConsumerThreads) {
    if (produces) Producer<kTokens>(args, shared).run();
    return;
  }
  wait_for_cluster();
  let_next_start();
  wait_for_previous();
  Consumer<Element, kTokens, kExtras>(args, shared).run();
#endif
}

using Kernel = void (*)(FewRowsArgs);

struct Variant {
  Kernel kernel;
  std::uint32_t shared_bytes;
  std::uint32_t max_tokens;
};

template <typename Element, int kTokens, bool kExtras>
constexpr Variant kVariant = {few_rows_kernel<Element, kTokens, kExtras>,
                              Ring<kTokens>::kSharedBytes, kTokens};

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
      variants_of(product.weight.dtype, has_extras(product)),
      [&](const Variant& variant) { return product.in.num_tokens <= variant.max_tokens; });
}

// Of clusters of this kernel, how many a device runs at once.
std::uint32_t clusters_at_once(const CudaOp& op, const Variant& variant) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(op.num_sms / kCluster * kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = variant.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, variant.kernel, &config),
        "cudaOccupancyMaxActiveClusters");
  return static_cast<std::uint32_t>(clusters);
}

}  // namespace

FewRowsKernel::FewRowsKernel(const CudaOp& op) {
  if (!op.dependent_launch) return;
  std::uint32_t clusters = op.num_sms;
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const bool extras : {false, true}) {
      for (const Variant& variant : variants_of(dtype, extras)) {
        if (!prepare(variant.kernel, variant.shared_bytes)) return;
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
  FewRowsArgs args{};
  args.weight_map = gate ? paired_map(weight, kTileRows) : box_map(weight, kTileRows);
  args.input_map = box_map(input, variant.max_tokens);
  args.epilogue = epilogue_args(product);
  args.outputs_per_tile = gate ? kTileRows / 2 : kTileRows;
  args.boxes_per_tile = divide_up(weight.num_columns, kBoxColumns);
  args.num_tiles = divide_up(args.epilogue.num_outputs, args.outputs_per_tile);
  args.next_square_sums = product.next.weight == nullptr ? nullptr : product.next.square_sums;
  args.num_next_sums = norm_parts(args.epilogue.num_outputs);
  const std::uint32_t blocks = std::min(num_clusters_, args.num_tiles) * kCluster;
  launch(op, variant.kernel, {blocks, kThreads, variant.shared_bytes, kCluster}, args);
}

}  // namespace inferno::ops::cuda
