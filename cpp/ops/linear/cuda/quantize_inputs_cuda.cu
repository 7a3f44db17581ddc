// A block for each row, which keeps it in registers: a thread has 16 columns at a time.
#include <cuda_fp8.h>

#include <cfloat>

#include "ops/cuda/row.cuh"
#include "ops/linear/cuda/input_codes.cuh"
#include "ops/linear/cuda/quantize_inputs_cuda.h"
#include "ops/linear/cuda/weight_codes.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kMaxSteps = 4;  // of a thread
static_assert(kMaxCodedColumns == kMaxSteps * kMaxRowThreads * kStepColumns);

// Each kernel once.
__device__ std::uint32_t block_max(std::uint32_t value) {
  __shared__ std::uint32_t largest[kMaxRowThreads / 32];
  value = __reduce_max_sync(~0U, value);
  const std::uint32_t lane = threadIdx.x % 32;
  if (lane == 0) largest[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(~0U, lane < blockDim.x / 32 ? largest[lane] : 0);
}

// By what a row is multiplied besides: deferred normalisation.
__device__ float norm_scale(const QuantizeInputsArgs& args, std::size_t token,
                            std::uint32_t parts) {
  if (args.in.square_sums == nullptr) return 1.0F;
  float squares = 0.0F;
  for (std::uint32_t i = threadIdx.x; i < parts; i += blockDim.x) {
    squares += args.in.square_sums[token * parts + i];
  }
  const float mean = block_sum<0>(squares) / static_cast<float>(args.num_columns);
  return 1.0F / sqrtf(mean + args.in.eps);
}

template <typename Element, int kSteps>
__global__ void __launch_bounds__(kMaxRowThreads)
    quantize_inputs_kernel(const QuantizeInputsArgs args, std::uint32_t num_steps,
                           std::uint32_t num_square_sums) {
  let_next_start();
  wait_for_previous();
  const std::size_t token = blockIdx.x;
  const Element* row = static_cast<const Element*>(args.in.h) + token * args.num_columns;
  InputStep<Element> steps[kSteps];
  std::uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    steps[i].load(row, (threadIdx.x + i * blockDim.x) * kStepColumns, args.num_columns);
    most = max(most, steps[i].largest());
  }
  const float largest = __uint_as_float(block_max(most));
  // Finite, as zeros stay zeros beside the smallest of numbers.
  const float inverse = fminf(kE4m3Max / largest, FLT_MAX);
  const float scale = largest / kE4m3Max * norm_scale(args, token, num_square_sums);
  if (threadIdx.x == 0) args.scales[token] = scale;
  const auto code = [inverse](float value) {
    return std::uint32_t{__nv_cvt_float_to_fp8(value * inverse, __NV_SATFINITE, __NV_E4M3)};
  };
  std::uint8_t* codes = args.codes + token * num_steps * kStepColumns;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const std::uint32_t step = threadIdx.x + i * blockDim.x;
    std::uint32_t words[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) words[lane] = steps[i].word(lane, code);
    // Four neighbours have the four steps of a lane's 16 bytes.
    transpose(words);
    const std::uint32_t lane = step % 4;
    if (step < num_steps) {
      *reinterpret_cast<uint4*>(codes + (step - lane) * kStepColumns + lane * 16) = {
          words[0], words[1], words[2], words[3]};
    }
  }
}

}  // namespace

void quantize_inputs_cuda(const CudaOp& op, const QuantizeInputsArgs& args) {
  if (args.in.num_tokens == 0) return;
  if (args.num_columns > kMaxCodedColumns) {
    throw std::invalid_argument("other: inputs of " + std::to_string(args.num_columns) +
                                " columns as codes, expected up to " +
                                std::to_string(kMaxCodedColumns));
  }
  const std::uint32_t spans = (args.num_columns + kSpanColumns - 1) / kSpanColumns;
  const std::uint32_t steps = spans * (kSpanColumns / kStepColumns);
  const std::uint32_t each = (steps + kMaxRowThreads - 1) / kMaxRowThreads;
  const std::uint32_t threads = ((steps + each - 1) / each + 31) / 32 * 32;
  with_element(args.in.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto kernel =
        each == 1 ? quantize_inputs_kernel<Element, 1> : quantize_inputs_kernel<Element, kMaxSteps>;
    launch(op, kernel, {args.in.num_tokens, threads}, args, steps, norm_parts(args.num_columns));
  });
}

}  // namespace inferno::ops::cuda
