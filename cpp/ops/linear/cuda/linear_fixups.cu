#include "ops/cuda/cuda_device.cuh"
#include "ops/linear/cuda/linear_fixups.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;

// A thread for each output of a token.
template <typename Value>
__global__ void __launch_bounds__(kThreads) add_bias_kernel(AddBiasArgs args) {
  let_next_start();
  const std::uint32_t output = blockIdx.y * kThreads + threadIdx.x;
  const float bias = output < args.num_outputs ? args.scale * args.bias[output] : 0.0F;
  wait_for_previous();
  if (output >= args.num_outputs) return;
  Value* y = static_cast<Value*>(args.y) + std::size_t{blockIdx.x} * args.num_outputs + output;
  *y = from_float<Value>(to_float(*y) + bias);
}

}  // namespace

void add_bias_cuda(const CudaOp& op, const AddBiasArgs& args) {
  const auto kernel = args.dtype == Dtype::F32   ? add_bias_kernel<float>
                      : args.dtype == Dtype::F16 ? add_bias_kernel<__half>
                                                 : add_bias_kernel<__nv_bfloat16>;
  const std::uint32_t parts = (args.num_outputs + kThreads - 1) / kThreads;
  launch(op, kernel, {dim3(args.num_tokens, parts), kThreads}, args);
}

}  // namespace inferno::ops::cuda
