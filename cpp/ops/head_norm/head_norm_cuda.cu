// A block for each span, as for a row of rms_norm_cuda.
#include "ops/cuda/row.cuh"
#include "ops/head_norm/head_norm_cuda.h"

namespace inferno::ops::cuda {
namespace {

template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads) head_norm_kernel(HeadNormCudaArgs args) {
  let_next_start();
  const auto weight = load_weight<kPacks>(args.weight, args.width);
  wait_for_previous();
  Element* span = static_cast<Element*>(args.x) + blockIdx.x * args.row_stride +
                  std::size_t{blockIdx.y} * args.width;
  const auto x = load_row<kPacks>(span, args.width);
  store_row(normalized(x, weight, args.eps, args.width), args.width, span);
}

}  // namespace

void head_norm_cuda(const CudaOp& op, const HeadNormCudaArgs& args) {
  if (args.row_stride % 8 != 0) {
    throw std::invalid_argument("other: head_norm: row stride " + std::to_string(args.row_stride) +
                                ", expected a multiple of 8");
  }
  if (args.num_tokens == 0 || args.num_heads == 0) return;
  with_element(args.dtype, [&](auto element) {
    launch_by_hidden_size(args.width, [&](auto packs, std::uint32_t threads) {
      launch(op, head_norm_kernel<decltype(element), packs()>,
             {dim3(args.num_tokens, args.num_heads), threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
