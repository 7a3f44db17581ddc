// A block for each row, which keeps the row in registers: x is read once.
#include "ops/cuda/row.cuh"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {
namespace {

template <typename Element, int kPacks, bool kWeighted>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_kernel(RmsNormCudaArgs args) {
  let_next_start();
  const auto weight =
      kWeighted ? load_row<kPacks>(args.weight, args.hidden_size) : row_of_ones<kPacks>();
  wait_for_previous();
  const std::size_t token = blockIdx.x;
  const std::size_t row = args.rows == nullptr ? token : args.rows[token];
  const auto x = load_row<kPacks>(args.x + row * args.hidden_size, args.hidden_size);
  store_row(normalized(x, weight, args.eps, args.hidden_size), args.hidden_size,
            static_cast<Element*>(args.out) + token * args.hidden_size);
}

}  // namespace

void rms_norm_cuda(const CudaOp& op, const RmsNormCudaArgs& args) {
  if (args.num_tokens == 0) return;
  with_element(args.dtype, [&](auto element) {
    launch_by_hidden_size(args.hidden_size, [&](auto packs, std::uint32_t threads) {
      using Element = decltype(element);
      const auto kernel = args.weight == nullptr ? rms_norm_kernel<Element, packs(), false>
                                                 : rms_norm_kernel<Element, packs(), true>;
      launch(op, kernel, {args.num_tokens, threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
