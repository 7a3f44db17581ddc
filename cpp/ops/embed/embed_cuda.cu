// The start of a step: a block for each token.
#include "ops/cuda/elementwise_cuda.cuh"
#include "ops/cuda/elementwise_cuda.h"

namespace inferno::ops::cuda {
namespace {

__device__ std::uint32_t token_id(const EmbedCudaArgs& args, std::size_t token) {
  const std::uint32_t seat = args.feed_seats[token];
  const std::uint32_t given = args.token_ids[token];
  const std::uint32_t id = seat == kNoSeat ? given : args.sampled_ids[seat];
  return id < args.table.num_rows ? id : 0;
}

// Accurate for large positions too: sincosf reduces the argument exactly.
__device__ void write_angles(const EmbedCudaArgs& args, std::size_t token) {
  const std::uint32_t half = args.head_dim / 2;
  const auto position = static_cast<float>(args.positions[token]);
  float* row = args.cos_sin + token * 2 * half;
  for (std::uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
    float sine;
    float cosine;
    sincosf(position * args.inv_freq[i], &sine, &cosine);
    row[i] = cosine;
    row[half + i] = sine;
  }
}

template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads) embed_kernel(EmbedCudaArgs args) {
  let_next_start();
  const std::uint32_t hidden_size = args.table.num_columns;
  const auto weight = load_row<kPacks>(args.norm_weight, hidden_size);
  wait_for_previous();
  const std::size_t token = blockIdx.x;
  const Element* row = static_cast<const Element*>(args.table.data) +
                       std::size_t{token_id(args, token)} * hidden_size;
  RowPart<kPacks> x;
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    const auto pack = load_pack<Element, kRowPack>(row + column);
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) x.packs[i].at[j] = to_float(pack.at[j]);
  });
  write_angles(args, token);
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t column) {
    store_pack(args.x + token * hidden_size + column, x.packs[i]);
  });
  normalize_row(x, weight, args.eps, hidden_size,
                static_cast<Element*>(args.h) + token * hidden_size);
}

}  // namespace

void embed_cuda(const CudaOp& op, const EmbedCudaArgs& args) {
  if (args.num_tokens == 0) return;
  with_element(args.table.dtype, [&](auto element) {
    launch_by_hidden_size(args.table.num_columns, [&](auto packs, std::uint32_t threads) {
      launch(op, embed_kernel<decltype(element), packs()>, {args.num_tokens, threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
