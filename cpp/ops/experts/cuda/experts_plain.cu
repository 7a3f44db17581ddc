// Products of pairs' rows with plain loads: a warp for each output of each pair. Simple before
// fast; the devices that the node is tuned for have experts_stream.cu and experts_tiles.cu.
#include "ops/cuda/row.cuh"
#include "ops/experts/cuda/experts_product.h"
#include "ops/glu/activation.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kWarps = 8;
constexpr int kPack = 8;  // elements of 16 bytes

struct PlainArgs {
  ExpertsProduct product;
  std::uint32_t num_outputs;
};

// Every lane gets the sum.
template <typename Element>
__device__ float multiply_row(const Element* weights, const Element* x, std::uint32_t columns) {
  float sum = 0.0F;
  for (std::uint32_t column = threadIdx.x % 32 * kPack; column < columns; column += 32 * kPack) {
    const auto w = load_pack<Element, kPack>(weights + column);
    const auto v = load_pack<Element, kPack>(x + column);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum = fmaf(to_float(w.at[i]), to_float(v.at[i]), sum);
  }
  return warp_sum(sum);
}

__device__ float scale_of(const ExpertsProduct& product, std::uint32_t row) {
  if (product.square_sums == nullptr) return 1.0F;
  const std::uint32_t columns = product.weight.shape.num_columns;
  float sum = 0.0F;
  const float* sums = product.square_sums + std::size_t{row} * product.num_square_sums;
  for (std::uint32_t i = threadIdx.x % 32; i < product.num_square_sums; i += 32) sum += sums[i];
  return 1.0F / sqrtf(warp_sum(sum) / static_cast<float>(columns) + product.eps);
}

template <typename Element>
__global__ void __launch_bounds__(kWarps * 32) experts_plain_kernel(const PlainArgs args) {
  wait_for_previous();
  let_next_start();
  const ExpertsProduct& product = args.product;
  const ExpertMatrix& matrix = product.weight;
  const std::uint32_t pair = blockIdx.x;
  const std::uint32_t output = blockIdx.y * kWarps + threadIdx.x / 32;
  const std::uint32_t expert = product.routing.expert_ids[pair];
  if (output >= args.num_outputs || expert >= product.routing.num_experts) return;
  const std::size_t columns = matrix.shape.num_columns;
  const std::uint32_t row = product.token_rows ? pair / product.routing.experts_per_token : pair;
  const Element* x = static_cast<const Element*>(product.x) + row * columns;
  const auto* weights =
      reinterpret_cast<const Element*>(matrix.data + expert * matrix.expert_stride);
  const float* bias =
      matrix.bias == nullptr ? nullptr : matrix.bias + std::size_t{expert} * matrix.shape.num_rows;
  const float scale = scale_of(product, row);
  const auto value_of = [&](std::uint32_t n) {
    const float sum = multiply_row(weights + n * columns, x, matrix.shape.num_columns);
    return sum * scale + (bias == nullptr ? 0.0F : bias[n]);
  };
  float value = value_of(output);
  if (product.gate) {
    value = activated(product.activation, value, value_of(args.num_outputs + output));
  }
  if (threadIdx.x % 32 != 0) return;
  static_cast<Element*>(product.out)[std::size_t{pair} * args.num_outputs + output] =
      from_float<Element>(value);
}

}  // namespace

void experts_plain(const CudaOp& op, const ExpertsProduct& product) {
  const PlainArgs args{product, product.num_outputs()};
  const dim3 grid(product.routing.num_pairs, (args.num_outputs + kWarps - 1) / kWarps);
  with_element(product.weight.shape.dtype(), [&](auto element) {
    launch(op, experts_plain_kernel<decltype(element)>, {grid, kWarps * 32}, args);
  });
}

}  // namespace inferno::ops::cuda
