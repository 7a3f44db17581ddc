#include <algorithm>
#include <cmath>

#include "ops/cuda/cuda_device.cuh"
#include "ops/linear/cuda/code_layout.h"
#include "ops/random_fill/random_codes_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;

struct KernelArgs {
  std::uint64_t key;
  std::size_t num_words;      // of 32 bits
  std::size_t row_scales_at;  // all in words
  std::uint32_t span_words;
  std::uint32_t code_words;
  std::uint32_t scale;
  bool fp8;
  std::uint32_t* out;
};

__device__ std::uint32_t word_of(std::uint64_t key, std::uint64_t index) {
  std::uint64_t x = key + index * 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return static_cast<std::uint32_t>(x >> 32);
}

__global__ void __launch_bounds__(kThreads) random_codes_kernel(const KernelArgs args) {
  let_next_start();
  wait_for_previous();
  const std::size_t step = std::size_t{gridDim.x} * kThreads;
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < args.num_words;
       i += step) {
    const bool scale = i >= args.row_scales_at || i % args.span_words >= args.code_words;
    std::uint32_t word = word_of(args.key, i);
    // Without the uppermost bit of the exponent no code of fp8 is a NaN.
    if (args.fp8) word &= 0xbfbfbfbfU;
    args.out[i] = scale ? args.scale : word;
  }
}

// The deviation of the codes' values.
double code_deviation(const WeightFormat& format) {
  const std::uint32_t count = 1U << weight_bits(format.kind);
  double squares = 0;
  std::uint32_t num = 0;
  for (std::uint32_t code = 0; code < count; ++code) {
    if (format.kind == WeightKind::Fp8 && (code & 0x40U) != 0) continue;
    const double value = weight_value(format.kind, static_cast<std::uint8_t>(code));
    squares += value * value;
    ++num;
  }
  return std::sqrt(squares / num);
}

}  // namespace

void random_codes_cuda(const CudaOp& op, const RandomCodesArgs& args) {
  const CodeLayout layout(args.matrix);
  const auto scale = static_cast<float>(args.deviation / code_deviation(args.matrix.format));
  const KernelArgs kernel_args{.key = args.key,
                               .num_words = layout.bytes / 4,
                               .row_scales_at = layout.row_scales_at / 4,
                               .span_words = static_cast<std::uint32_t>(layout.span_bytes / 4),
                               .code_words = layout.code_bytes / 4,
                               .scale = scale_word(scale, 0, args.matrix.format.offsets),
                               .fp8 = args.matrix.format.kind == WeightKind::Fp8,
                               .out = reinterpret_cast<std::uint32_t*>(args.out)};
  if (layout.num_strips == 0) return;
  launch(op, random_codes_kernel, {8 * op.num_sms, kThreads}, kernel_args);
}

}  // namespace inferno::ops::cuda
