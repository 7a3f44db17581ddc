// Products of few rows at the memory's pace.
//
// Weights are cut into boxes of 128 rows x 64 columns, numbered tile by tile (a tile: the 128 rows,
// all columns), and every block takes an equal run of boxes, whatever tile borders lie in it. One
// warp streams the boxes through a ring in shared memory; it fills the ring before it waits for
// the kernel before this one, since weights are constant. Eight warps multiply: 16 rows of W are
// the 16 rows of an mma, tokens its 8 columns.
//
// A tile cut among blocks is finished by the block of its last box; the others leave partial sums.
// A block goes through its tiles from the last to the first, so what it leaves it leaves early,
// and what it waits for is of blocks before it, which start no later: no deadlock.
//
// Batch invariance: cuts depend on the weight's shape and the number of SMs only, and the sum of
// an output goes through its columns in order, cut by cut. So a row's bits are the same alone and
// beside others.
#include <algorithm>
#include <stdexcept>

#include "ops/linear_boxes.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace boxes;

#ifdef INFERNO_SM90

template <typename Element, int kTokens>
class Consumer {
 public:
  __device__ Consumer(const FewRowsArgs& args, const Shared& shared)
      : args_(args), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // By all consumer warps.
  __device__ void run() {
    load_scales();
    Run run(args_);
    Segment segment;
    while (run.next(segment)) {
      const bool finishes = segment.end_box == args_.boxes_per_tile;
      Outputs outputs;
      if (finishes) load_outputs(segment.tile, outputs);
      Sums sums{};
      multiply_segment(segment, sums);
      if (!finishes) {
        leave(sums);
        continue;
      }
      if (segment.first_box > 0) collect(segment, sums);
      finish(segment.tile, outputs, sums);
    }
  }

 private:
  using Ring = boxes::Ring<kTokens>;
  static constexpr int kGroups = kTokens / 8;  // of tokens
  static constexpr int kSteps = kBoxColumns / 16;
  struct Sums {
    float at[kGroups][4];
  };
  // What a thread knows of a tile's outputs before their sums are there.
  struct Outputs {
    Sums before;  // of Add: x
    OutputConstants constants[2];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  // Of at[group][i].
  __device__ std::uint32_t token(int group, int i) const {
    return group * 8 + lane_ % 4 * 2 + i % 2;
  }

  // A warp has every kConsumers-th token; the loads of all are under way together.
  __device__ void load_scales() const {
    float scales[kTokens / kConsumers];
    row_scales(args_.epilogue, warp_, kConsumers, scales);
#pragma unroll
    for (int i = 0; i < kTokens / kConsumers; ++i) {
      if (lane_ == 0) shared_.scale[warp_ + i * kConsumers] = scales[i];
    }
    barrier();
  }

  __device__ void multiply_segment(const Segment& segment, Sums& sums) {
    Sums odd{};  // a second chain of sums, since an mma takes longer than its issue
    for (std::uint32_t box = segment.first_box; box < segment.end_box; ++box) {
      wait_barrier(&shared_.full[at_.stage], at_.parity);
      multiply_stage(shared_.ring + at_.stage * Ring::kStageBytes, sums, odd);
      __syncwarp();
      if (lane_ == 0) arrive(&shared_.empty[at_.stage]);
      at_.advance();
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.at[group][i] += odd.at[group][i];
    }
  }

  // The swizzle: in row r, the 16 bytes numbered c lie at c ^ (r % 8).
  __device__ void multiply_stage(std::uint32_t stage, Sums& even, Sums& odd) const {
    const std::uint32_t row = lane_ % 8;
    // Matrices 0 and 2 of an mma's weights are of the first run, 1 and 3 of the second; 2 and 3
    // eight columns on.
    const std::uint32_t weights =
        stage + lane_ / 8 % 2 * kHalfBytes + (warp_ * 8 + row) * kBoxRowBytes;
    const std::uint32_t input = stage + 2 * kHalfBytes + row * kBoxRowBytes;
    Fragments a[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      a[step] = load_matrices(weights + (((step * 2 + lane_ / 16) ^ row) << 4));
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int pair = 0; pair < kSteps / 2; ++pair) {
        const Fragments b =
            load_matrices(input + group * 8 * kBoxRowBytes + (((pair * 4 + lane_ / 8) ^ row) << 4));
        mma_16816<Element>(even.at[group], a[pair * 2].at, b.at[0], b.at[1]);
        mma_16816<Element>(odd.at[group], a[pair * 2 + 1].at, b.at[2], b.at[3]);
      }
    }
  }

  __device__ float4* partial(std::uint32_t block, int group) const {
    return args_.partials + std::size_t{block} * (kPartials / 4) + group * kConsumerThreads +
           threadIdx.x;
  }

  // Whether this thread has sums of a token that exists, and so of at[group][0] and [2].
  __device__ bool has(int group) const { return token(group, 0) < args_.epilogue.num_tokens; }

  // For the block that finishes the tile.
  __device__ void leave(const Sums& sums) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (has(group)) publish(partial(blockIdx.x, group), sums.at[group]);
    }
  }

  // Adds what the blocks before have left of the tile, in order, and takes it away.
  __device__ void collect(const Segment& segment, Sums& sums) const {
    Sums total{};
    for (std::uint32_t block = Run::block_of(args_, segment.tile * args_.boxes_per_tile);
         block < blockIdx.x; block += kBlocksAtOnce) {
      take(block, total);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.at[group][i] += total.at[group][i];
    }
  }

  // Of kBlocksAtOnce blocks from `first` on, if they lie before this one; all loads at once.
  static constexpr int kBlocksAtOnce = 4;
  __device__ void take(std::uint32_t first, Sums& total) const {
    float4 taken[kBlocksAtOnce][kGroups];
    bool complete;
    do {
      complete = true;
#pragma unroll
      for (int b = 0; b < kBlocksAtOnce; ++b) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (wants(first + b, group)) taken[b][group] = read_published(partial(first + b, group));
        }
      }
#pragma unroll
      for (int b = 0; b < kBlocksAtOnce; ++b) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (wants(first + b, group)) complete &= is_published(taken[b][group]);
        }
      }
    } while (!complete);
#pragma unroll
    for (int b = 0; b < kBlocksAtOnce; ++b) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (!wants(first + b, group)) continue;
        const float4& partial_sums = taken[b][group];
        total.at[group][0] += partial_sums.x;
        total.at[group][1] += partial_sums.y;
        total.at[group][2] += partial_sums.z;
        total.at[group][3] += partial_sums.w;
        *partial(first + b, group) = float4{};
      }
    }
  }

  __device__ bool wants(std::uint32_t block, int group) const {
    return block < blockIdx.x && has(group);
  }

  // The thread's first output of a tile; the second, if it is not of a pair, is kHalfRows on.
  __device__ std::uint32_t first_output(std::uint32_t tile) const {
    return tile * args_.rows_per_tile + warp_ * 8 + lane_ / 4;
  }

  __device__ void load_outputs(std::uint32_t tile, Outputs& outputs) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    const std::uint32_t first = first_output(tile);
    outputs.before = {};
    if (epilogue.kind == Epilogue::Add) {
      for_each_output(first, [&](int group, int i, std::uint32_t t, std::uint32_t output) {
        outputs.before.at[group][i] = load_output(epilogue, t, output);
      });
    }
    outputs.constants[0] = constants_of(epilogue, first);
    outputs.constants[1] = constants_of(epilogue, first + kHalfRows);
  }

  __device__ void finish(std::uint32_t tile, const Outputs& outputs, const Sums& sums) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    if (epilogue.kind == Epilogue::Gate) return finish_pairs(first_output(tile), sums);
    float squares[kGroups][2] = {};
    for_each_output(
        first_output(tile), [&](int group, int i, std::uint32_t t, std::uint32_t output) {
          const OutputConstants& constants = outputs.constants[i / 2];
          const float value = sums.at[group][i] * shared_.scale[t] + constants.bias;
          squares[group][i % 2] += finish_output<Element>(
              epilogue, t, output, outputs.before.at[group][i] + value, constants.next_weight);
        });
    if (args_.next_square_sums == nullptr) return;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) add_squares_of_warp(token(group, i), squares[group][i]);
    }
    store_squares(tile);
  }

  // Calls fn(group, i, token, output) for each of at[group][i] that exists.
  template <typename Fn>
  __device__ void for_each_output(std::uint32_t first, Fn fn) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t t = token(group, i);
        const std::uint32_t output = first + i / 2 * kHalfRows;
        if (t >= args_.epilogue.num_tokens || output >= args_.epilogue.num_outputs) continue;
        fn(group, i, t, output);
      }
    }
  }

  // A thread has the same output's gate and up.
  __device__ void finish_pairs(std::uint32_t output, const Sums& sums) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    if (output >= epilogue.num_outputs) return;
    const float gate_bias = bias_of(epilogue, output);
    const float up_bias = bias_of(epilogue, epilogue.num_outputs + output);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t t = token(group, i);
        if (t >= epilogue.num_tokens) continue;
        const float scale = shared_.scale[t];
        finish_gated<Element>(epilogue, t, output, sums.at[group][i] * scale + gate_bias,
                              sums.at[group][i + 2] * scale + up_bias);
      }
    }
  }

  // Lanes of equal lane % 4 have the same token.
  __device__ void add_squares_of_warp(std::uint32_t t, float squares) const {
    for (int lane = 4; lane < 32; lane *= 2) squares += __shfl_xor_sync(~0U, squares, lane);
    if (lane_ < 4) shared_.squares[warp_ * kCallRows + t] = squares;
  }

  __device__ void store_squares(std::uint32_t tile) const {
    barrier();
    if (threadIdx.x < args_.epilogue.num_tokens) {
      float squares = 0.0F;
      for (std::uint32_t warp = 0; warp < kConsumers; ++warp) {
        squares += shared_.squares[warp * kCallRows + threadIdx.x];
      }
      // Each tile has several parts; its sum goes to the first of them.
      constexpr std::uint32_t kParts = kTileRows / kNormPartRows;
      const std::uint32_t parts = args_.num_next_sums;
      float* sums = args_.next_square_sums + std::size_t{threadIdx.x} * parts;
      for (std::uint32_t part = 0; part < kParts && tile * kParts + part < parts; ++part) {
        sums[tile * kParts + part] = part == 0 ? squares : 0.0F;
      }
    }
    barrier();
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<Ring::kStages> at_;
};

#endif  // INFERNO_SM90

template <typename Element, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    few_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90
  extern __shared__ unsigned char dynamic[];
  constexpr std::uint32_t kStages = Ring<kTokens>::kStages;
  __shared__ std::uint64_t full[kStages];
  __shared__ std::uint64_t empty[kStages];
  __shared__ float scale[kCallRows];
  __shared__ float squares[kConsumers * kCallRows];
  const std::uint32_t base = shared_address(dynamic);
  const std::uint32_t ring = (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const Shared shared{full, empty, ring, scale, squares};
  const bool produces = threadIdx.x == kConsumerThreads;
  if (produces) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    if (produces) Producer<kTokens>(args, shared).run();
    return;
  }
  let_next_start();
  wait_for_previous();
  Consumer<Element, kTokens>(args, shared).run();
#endif
}

using Kernel = void (*)(FewRowsArgs);

struct Variant {
  Kernel kernel;
  std::uint32_t shared_bytes;
  std::uint32_t max_tokens;
};

template <typename Element, int kTokens>
constexpr Variant kVariant = {few_rows_kernel<Element, kTokens>, Ring<kTokens>::kSharedBytes,
                              kTokens};

template <typename Element>
constexpr Variant kVariants[] = {kVariant<Element, 8>, kVariant<Element, 16>, kVariant<Element, 24>,
                                 kVariant<Element, 32>};

const Variant& variant_of(Dtype dtype, std::uint32_t num_tokens) {
  const Variant* variants = dtype == Dtype::BF16 ? kVariants<__nv_bfloat16> : kVariants<__half>;
  return variants[(num_tokens - 1) / 8];
}

}  // namespace

FewRowsKernel::FewRowsKernel(const CudaOp& op, void* partials)
    : partials_(partials), available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (std::uint32_t num_tokens = 8; num_tokens <= kCallRows; num_tokens += 8) {
      const Variant& variant = variant_of(dtype, num_tokens);
      available_ = available_ && prepare(variant.kernel, variant.shared_bytes);
      if (!available_) return;
    }
  }
}

std::size_t FewRowsKernel::partials_bytes() {
  return std::size_t{kMaxBlocks} * kPartials * sizeof(float);
}

void FewRowsKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const Variant& variant = variant_of(weight.dtype, product.in.num_tokens);
  const DeviceMatrix input{product.in.h, product.in.num_tokens, weight.num_columns, weight.dtype};
  const bool gate = product.epilogue == Epilogue::Gate;
  FewRowsArgs args{};
  args.weight_map = box_map(weight, kHalfRows);
  args.input_map = box_map(input, variant.max_tokens);
  args.epilogue = epilogue_args(product);
  args.rows_per_tile = gate ? kHalfRows : kTileRows;
  args.second_run = gate ? weight.num_rows / 2 : kHalfRows;
  args.boxes_per_tile = divide_up(weight.num_columns, kBoxColumns);
  args.num_boxes = divide_up(args.epilogue.num_outputs, args.rows_per_tile) * args.boxes_per_tile;
  args.next_square_sums = product.next.weight == nullptr ? nullptr : product.next.square_sums;
  args.num_next_sums = norm_parts(args.epilogue.num_outputs);
  args.partials = static_cast<float4*>(partials_);
  const std::uint32_t blocks = std::min({op.num_sms, kMaxBlocks, args.num_boxes});
  launch(op, variant.kernel, {blocks, kThreads, variant.shared_bytes}, args);
}

}  // namespace inferno::ops::cuda
