// What the few-rows kernels do with a finished sum.
#pragma once

#include "ops/cuda/cuda_device.cuh"
#include "ops/glu/activation.cuh"
#include "ops/linear/cuda/linear_product.h"

namespace inferno::ops::cuda {

// What most products do without, and the kernels for these are compiled without: together they cost
// a product of 23 us 0.2 us.
struct Extras {
  float scale;            // of Add: of the product and its bias; else 1
  Activation activation;  // of Gate; else and mostly Silu
};

struct EpilogueArgs {
  Epilogue kind;
  std::uint32_t num_tokens;
  std::uint32_t num_outputs;  // columns of out: N, of Gate N / 2
  const float* bias;
  void* out;
  const float* next_weight;
  void* next_h;
  const float* square_sums;  // of the input
  std::uint32_t num_square_sums;
  float eps;
  std::uint32_t num_columns;  // K
  Extras extras;
};

inline std::uint32_t divide_up(std::uint32_t a, std::uint32_t b) { return (a + b - 1) / b; }

// Whether this build has the kernel for the device; then it may take so much shared memory. Built
// for an older device, the kernel's body is empty, even where a newer one runs it.
template <typename Kernel>
bool prepare(Kernel kernel, std::uint32_t shared_bytes) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  if (attributes.ptxVersion < 90) return false;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  return true;
}

inline EpilogueArgs epilogue_args(const FewRowsProduct& product) {
  const std::uint32_t num_rows = product.weight.num_rows;
  const std::uint32_t num_columns = product.weight.num_columns;
  return {.kind = product.epilogue,
          .num_tokens = product.in.num_tokens,
          .num_outputs = product.epilogue == Epilogue::Gate ? num_rows / 2 : num_rows,
          .bias = product.bias,
          .out = product.out,
          .next_weight = product.next.weight,
          .next_h = product.next.h,
          .square_sums = product.in.square_sums,
          .num_square_sums = norm_parts(num_columns),
          .eps = product.in.eps,
          .num_columns = num_columns,
          .extras = {product.scale, product.activation}};
}

inline bool has_extras(const FewRowsProduct& product) {
  return product.scale != 1.0F || product.activation.kind != ActivationKind::Silu;
}

// What rows `first`, `first` + `step` … of the product are multiplied by: deferred normalisation
// and the product's scale; the scale alone of rows that do not exist. All lanes of a warp together,
// so that the order of a sum is the same everywhere.
template <bool kExtras, int kRows>
__device__ __forceinline__ void row_scales(const EpilogueArgs& args, std::uint32_t first,
                                           std::uint32_t step, float (&scales)[kRows]) {
#pragma unroll
  for (float& scale : scales) scale = kExtras ? args.extras.scale : 1.0F;
  if (args.square_sums == nullptr) return;
  float squares[kRows] = {};
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t size = args.num_square_sums;
  const auto sums_of = [&](int i) { return args.square_sums + (first + i * step) * size; };
  const auto exists = [&](int i) { return first + i * step < args.num_tokens; };
  if (size % 4 == 0) {  // then every row is aligned for loads of four
    for (std::uint32_t at = lane * 4; at < size; at += 128) {
      float4 four[kRows] = {};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (exists(i)) four[i] = *reinterpret_cast<const float4*>(sums_of(i) + at);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        squares[i] += (four[i].x + four[i].y) + (four[i].z + four[i].w);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!exists(i)) continue;
      for (std::uint32_t at = lane; at < size; at += 32) squares[i] += sums_of(i)[at];
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float mean = warp_sum(squares[i]) / static_cast<float>(args.num_columns);
    if (exists(i)) scales[i] *= 1.0F / sqrtf(mean + args.eps);
  }
}

template <bool kExtras>
__device__ __forceinline__ float row_scale(const EpilogueArgs& args, std::uint32_t token) {
  float scale[1];
  row_scales<kExtras>(args, token, 1, scale);
  return scale[0];
}

template <bool kExtras>
__device__ __forceinline__ float bias_of(const EpilogueArgs& args, std::uint32_t row) {
  if (args.bias == nullptr) return 0.0F;
  return kExtras ? args.extras.scale * args.bias[row] : args.bias[row];
}

// Of Gate: gate and up of one output.
template <typename Element, bool kExtras>
__device__ __forceinline__ void finish_gated(const EpilogueArgs& args, std::uint32_t token,
                                             std::uint32_t output, float gate, float up) {
  const float gated = kExtras ? activated(args.extras.activation, gate, up)
                              : activated_as(ActivationKind::Silu, {}, gate, up);
  static_cast<Element*>(args.out)[std::size_t{token} * args.num_outputs + output] =
      from_float<Element>(gated);
}

// What every token's row has in common at an output; zeros beyond the last.
struct OutputConstants {
  float bias = 0.0F;
  float next_weight = 0.0F;
};

template <bool kExtras>
__device__ __forceinline__ OutputConstants constants_of(const EpilogueArgs& args,
                                                        std::uint32_t output) {
  if (output >= args.num_outputs) return {};
  return {bias_of<kExtras>(args, output),
          args.next_weight == nullptr ? 0.0F : args.next_weight[output]};
}

// Of Add: x as it was.
__device__ __forceinline__ float load_output(const EpilogueArgs& args, std::uint32_t token,
                                             std::uint32_t output) {
  return static_cast<const float*>(args.out)[std::size_t{token} * args.num_outputs + output];
}

// Of all others than Gate: writes a finished value (of Add: the new x). Answers its square.
template <typename Element>
__device__ __forceinline__ float finish_output(const EpilogueArgs& args, std::uint32_t token,
                                               std::uint32_t output, float value,
                                               float next_weight) {
  const std::size_t at = std::size_t{token} * args.num_outputs + output;
  if (args.kind == Epilogue::Store) {
    static_cast<Element*>(args.out)[at] = from_float<Element>(value);
    return 0.0F;
  }
  static_cast<float*>(args.out)[at] = value;
  if (args.next_weight != nullptr) {
    static_cast<Element*>(args.next_h)[at] = from_float<Element>(value * next_weight);
  }
  return value * value;
}

}  // namespace inferno::ops::cuda
