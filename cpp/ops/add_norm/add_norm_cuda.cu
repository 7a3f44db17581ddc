// A block for each row, which keeps x and y in registers: each is read once.
#include "ops/add_norm/add_norm_cuda.h"
#include "ops/cuda/row.cuh"

namespace inferno::ops::cuda {
namespace {

template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads) add_norm_kernel(AddNormCudaArgs args) {
  let_next_start();
  const std::uint32_t hidden_size = args.hidden_size;
  const std::size_t row = std::size_t{blockIdx.x} * hidden_size;
  // Ahead of what is waited for; of a wide row only one weight has room beside x and y.
  constexpr bool kBothAhead = kPacks <= 2;
  const auto post_weight = load_weight<kPacks>(args.post.weight, hidden_size);
  RowPart<kPacks> next_weight;
  if (kBothAhead) next_weight = load_weight<kPacks>(args.next.weight, hidden_size);
  wait_for_previous();
  auto y = load_row<kPacks>(args.y + row, hidden_size);
  auto x = load_row<kPacks>(args.x + row, hidden_size);
  if (args.post.normalise) y = normalized<0>(y, post_weight, args.post.eps, hidden_size);
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t) {
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) x.packs[i].at[j] += args.scale * y.packs[i].at[j];
  });
  store_row(x, hidden_size, args.x + row);
  if (args.h == nullptr) return;
  if (!kBothAhead) next_weight = load_weight<kPacks>(args.next.weight, hidden_size);
  if (args.next.normalise) x = normalized<1>(x, next_weight, args.next.eps, hidden_size);
  store_row(x, hidden_size, static_cast<Element*>(args.h) + row);
}

}  // namespace

void add_norm_cuda(const CudaOp& op, const AddNormCudaArgs& args) {
  if (args.num_tokens == 0) return;
  with_element(args.dtype, [&](auto element) {
    launch_by_hidden_size(args.hidden_size, [&](auto packs, std::uint32_t threads) {
      launch(op, add_norm_kernel<decltype(element), packs()>, {args.num_tokens, threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
