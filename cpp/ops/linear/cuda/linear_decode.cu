// Products of up to 8 rows with small matrices, where what lies between two products counts most.
//
// A block computes whole tiles of 16, 32 or 48 rows of W (whatever leaves fewest multiprocessors
// idle), so nothing is handed on between blocks. One warp streams the tile through a ring in shared
// memory, and with it the columns of the input; each of eight warps multiplies its share of a
// stage's columns, and their sums meet in shared memory at the end of the tile.
//
// Two blocks fit a multiprocessor. A kernel lets the next one start when its own last load is on
// its way: then that one's ring fills while this one's empties, and until this one has ended and
// the input is there. Started earlier, the ring would be full too soon and the memory rest; and as
// the kernel before this one has ended by then, there is exactly one free place on each
// multiprocessor.
#include <algorithm>
#include <span>

#include "ops/linear/cuda/linear_tiles.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace tiles;

#ifdef INFERNO_SM90

// By all consumer warps.
template <typename Element, int kMatrices, bool kExtras>
class Consumer {
 public:
  __device__ Consumer(const DecodeArgs& args, const Shared& shared)
      : args_(args), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    for (std::uint32_t tile = blockIdx.x; tile < args_.num_tiles; tile += gridDim.x) {
      Outputs outputs;
      load_outputs(tile, outputs);
      // Within the first tile the sums of squares are on their way with the input.
      if (tile == blockIdx.x) load_scale();
      Sums sums{};
      for (std::uint32_t stage = 0; stage < args_.stages_per_tile; ++stage) {
        wait_barrier(&shared_.full[at_.stage], at_.parity);
        multiply_stage(shared_.ring + at_.stage * Ring::kStageBytes, sums);
        __syncwarp();
        if (lane_ == 0) arrive(&shared_.empty[at_.stage]);
        at_.advance();
      }
      meet(sums);
      finish(tile, outputs);
    }
  }

 private:
  using Ring = tiles::Ring<kMatrices>;
  struct Sums {
    float at[kMatrices][4];
  };
  // What a thread knows of its outputs before their sums are there.
  struct Outputs {
    float before[Ring::kOutputs];  // of Add: x
    OutputConstants constants[Ring::kOutputs];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  __device__ void load_scale() const {
    if (warp_ >= args_.epilogue.num_tokens) return;
    const float scale = row_scale<kExtras>(args_.epilogue, warp_);
    if (lane_ == 0) shared_.scale[warp_] = scale;
  }

  // The swizzle: in row r of the ring, the 16 bytes numbered c lie at c ^ (r % 8); boxes and runs
  // are multiples of 8 rows.
  __device__ void multiply_stage(std::uint32_t stage, Sums& sums) const {
    const std::uint32_t row = lane_ % 8;
    const std::uint32_t step = warp_ * Ring::kSteps;  // the warp's first, of 16 columns
    const std::uint32_t box = step / 4;
    // 16-byte columns within the box: 2 for each step.
    const std::uint32_t column = step % 4 * 2;
    // Matrices 0 and 2 of an mma's weights are of the first run, 1 and 3 of the second; 2 and 3
    // eight columns on.
    const std::uint32_t weights = stage + lane_ / 8 % 2 * (Ring::kWeightBytes / 2) +
                                  box * Ring::kRunBytes + row * kBoxRowBytes;
    const std::uint32_t input =
        stage + Ring::kWeightBytes + box * Ring::kInputBytes + row * kBoxRowBytes;
    // Of up to two steps; where a warp has one, the other half is another warp's and not used.
    const std::uint32_t pair = Ring::kSteps == 1 ? column / 4 * 4 : column;
    const Fragments b = load_matrices(input + (((pair + lane_ / 8) ^ row) << 4));
#pragma unroll
    for (std::uint32_t s = 0; s < Ring::kSteps; ++s) {
      const bool upper = Ring::kSteps == 1 ? column % 4 != 0 : s == 1;
      const std::uint32_t b0 = upper ? b.at[2] : b.at[0];
      const std::uint32_t b1 = upper ? b.at[3] : b.at[1];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const Fragments a = load_matrices(weights + m * 8 * kBoxRowBytes +
                                          (((column + s * 2 + lane_ / 16) ^ row) << 4));
        mma_16816<Element>(sums.at[m], a.at, b0, b1);
      }
    }
  }

  // Brings the warps' sums together; all have read the tile before when they pass the first
  // barrier.
  __device__ void meet(const Sums& sums) const {
    float4* mine = reinterpret_cast<float4*>(shared_.sums) + warp_ * kMatrices * 32 + lane_;
    barrier();
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      mine[m * 32] = make_float4(sums.at[m][0], sums.at[m][1], sums.at[m][2], sums.at[m][3]);
    }
    barrier();
  }

  // The whole sum of a row of the tile (first run, then second) and a token: warp by warp.
  __device__ float sum_of(std::uint32_t row, std::uint32_t token) const {
    const std::uint32_t run = row / Ring::kRunRows;
    const std::uint32_t within = row % Ring::kRunRows;
    const float* words =
        shared_.sums + within / 8 * 128 + (within % 8 * 4 + token / 2) * 4 + run * 2 + token % 2;
    float sum = 0.0F;
#pragma unroll
    for (std::uint32_t warp = 0; warp < kConsumers; ++warp) sum += words[warp * kMatrices * 128];
    return sum;
  }

  // The i-th output of a thread, if there is one: of Gate each is of two rows.
  __device__ bool place(std::uint32_t tile, std::uint32_t i, std::uint32_t& row,
                        std::uint32_t& token, std::uint32_t& output) const {
    const std::uint32_t index = i * kConsumerThreads + threadIdx.x;
    row = index % args_.rows_per_tile;
    token = index / args_.rows_per_tile;
    output = tile * args_.rows_per_tile + row;
    return token < args_.epilogue.num_tokens && output < args_.epilogue.num_outputs;
  }

  __device__ void load_outputs(std::uint32_t tile, Outputs& outputs) const {
#pragma unroll
    for (std::uint32_t i = 0; i < Ring::kOutputs; ++i) {
      std::uint32_t row, token, output;
      const bool exists = place(tile, i, row, token, output);
      const bool adds = exists && args_.epilogue.kind == Epilogue::Add;
      outputs.before[i] = adds ? load_output(args_.epilogue, token, output) : 0.0F;
      outputs.constants[i] =
          exists ? constants_of<kExtras>(args_.epilogue, output) : OutputConstants{};
    }
  }

  __device__ void finish(std::uint32_t tile, const Outputs& outputs) const {
    const EpilogueArgs& epilogue = args_.epilogue;
#pragma unroll
    for (std::uint32_t i = 0; i < Ring::kOutputs; ++i) {
      std::uint32_t row, token, output;
      const bool exists = place(tile, i, row, token, output);
      float squares = 0.0F;
      if (exists) {
        const float scale = shared_.scale[token];
        const float value = sum_of(row, token) * scale + outputs.constants[i].bias;
        if (epilogue.kind == Epilogue::Gate) {
          const float up = sum_of(Ring::kRunRows + row, token) * scale +
                           bias_of<kExtras>(epilogue, epilogue.num_outputs + output);
          finish_gated<Element, kExtras>(epilogue, token, output, value, up);
        } else {
          squares = finish_output<Element>(epilogue, token, output, outputs.before[i] + value,
                                           outputs.constants[i].next_weight);
        }
      }
      if (args_.next_square_sums != nullptr) store_squares(token, output, squares);
    }
  }

  // Sixteen neighbouring threads have the rows of one partial sum.
  __device__ void store_squares(std::uint32_t token, std::uint32_t output, float squares) const {
    for (int lane = 1; lane < 16; lane *= 2) squares += __shfl_xor_sync(~0U, squares, lane);
    if (lane_ % 16 != 0 || token >= args_.epilogue.num_tokens) return;
    if (output >= args_.epilogue.num_outputs) return;
    args_.next_square_sums[token * args_.num_next_sums + output / kNormPartRows] = squares;
  }

  const DecodeArgs& args_;
  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  RingPosition<Ring::kStages> at_;
};

#endif  // INFERNO_SM90

template <typename Element, int kMatrices, bool kExtras>
__global__ void __launch_bounds__(kThreads, 2)
    decode_rows_kernel(const __grid_constant__ DecodeArgs args) {
#ifdef INFERNO_SM90
  extern __shared__ unsigned char dynamic[];
  using Ring = tiles::Ring<kMatrices>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ float scale[kTokens];
  const std::uint32_t base = shared_address(dynamic);
  const std::uint32_t ring = (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  float* sums =
      reinterpret_cast<float*>(dynamic + (ring - base) + Ring::kStages * Ring::kStageBytes);
  const Shared shared{full, empty, ring, scale, sums};
  const bool produces = threadIdx.x == kConsumerThreads;
  if (produces) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    if (produces) Producer<kMatrices>(args, shared).run();
    return;
  }
  wait_for_previous();
  Consumer<Element, kMatrices, kExtras>(args, shared).run();
#endif
}

using Kernel = void (*)(DecodeArgs);

struct Variant {
  Kernel kernel;
  std::uint32_t run_rows;
  std::uint32_t boxes;
};

template <typename Element, int kMatrices, bool kExtras>
constexpr Variant kVariant = {decode_rows_kernel<Element, kMatrices, kExtras>,
                              Ring<kMatrices>::kRunRows, Ring<kMatrices>::kBoxes};

template <typename Element, bool kExtras>
constexpr Variant kVariants[] = {kVariant<Element, 1, kExtras>, kVariant<Element, 2, kExtras>,
                                 kVariant<Element, 3, kExtras>};

std::span<const Variant> variants_of(Dtype dtype, bool extras) {
  if (dtype == Dtype::BF16) {
    return extras ? std::span(kVariants<__nv_bfloat16, true>)
                  : std::span(kVariants<__nv_bfloat16, false>);
  }
  return extras ? std::span(kVariants<__half, true>) : std::span(kVariants<__half, false>);
}

// The tile that gives the fullest multiprocessor least to do; of equals the largest.
const Variant& variant_of(const FewRowsProduct& product, std::uint32_t num_sms) {
  const std::uint32_t pairs =
      product.weight.num_rows / 2;  // of rows: a tile takes run_rows of them
  const auto variants = variants_of(product.in.dtype, has_extras(product));
  const auto most = [&](const Variant& variant) {
    return divide_up(divide_up(pairs, variant.run_rows), num_sms) * variant.run_rows;
  };
  const Variant* best = &variants[2];
  for (int i = 1; i >= 0; --i) {
    if (most(variants[i]) < most(*best)) best = &variants[i];
  }
  return *best;
}

}  // namespace

DecodeRowsKernel::DecodeRowsKernel(const CudaOp& op) : available_(op.dependent_launch) {
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const bool extras : {false, true}) {
      for (const Variant& variant : variants_of(dtype, extras)) {
        available_ = available_ && prepare(variant.kernel, kSharedBytes);
        if (!available_) return;
      }
    }
  }
}

bool DecodeRowsKernel::takes(const FewRowsProduct& product) const {
  const std::uint64_t bytes =
      std::uint64_t{product.weight.num_rows} * product.weight.num_columns * 2;
  return available_ && bytes <= kMostBytes && product.in.num_tokens <= kMaxDecodeRows &&
         product.weight.num_columns % kBoxColumns == 0 && product.weight.num_rows % 2 == 0;
}

void DecodeRowsKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const Variant& variant = variant_of(product, op.num_sms);
  const DeviceMatrix input{product.in.h, product.in.num_tokens, weight.num_columns,
                           product.in.dtype};
  const bool gate = product.epilogue == Epilogue::Gate;
  DecodeArgs args{};
  args.weight_map = boxes_map(weight, variant.run_rows, variant.boxes);
  args.input_map = boxes_map(input, kTokens, variant.boxes);
  args.epilogue = epilogue_args(product);
  args.rows_per_tile = gate ? variant.run_rows : 2 * variant.run_rows;
  args.second_run = gate ? weight.num_rows / 2 : variant.run_rows;
  args.stages_per_tile = divide_up(weight.num_columns, variant.boxes * kBoxColumns);
  args.num_tiles = divide_up(args.epilogue.num_outputs, args.rows_per_tile);
  args.next_square_sums = product.next.weight == nullptr ? nullptr : product.next.square_sums;
  args.num_next_sums = norm_parts(args.epilogue.num_outputs);
  const std::uint32_t blocks = std::min(op.num_sms, args.num_tiles);
  launch(op, variant.kernel, {blocks, kThreads, kSharedBytes}, args);
}

}  // namespace inferno::ops::cuda
