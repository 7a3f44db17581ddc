// A block for each token, which keeps its row in registers.
#include "ops/cuda/row.cuh"
#include "ops/embed/embed_cuda.h"

namespace inferno::ops::cuda {
namespace {

__device__ std::uint32_t token_id(const EmbedCudaArgs& args, std::size_t token) {
  const std::uint32_t seat = args.feed_seats[token];
  const std::uint32_t given = args.token_ids[token];
  const std::uint32_t id = seat == kNoSeat ? given : args.sampled_ids[seat];
  return id < args.table.num_rows ? id : 0;
}

// Accurate for large positions too: sincosf reduces the argument exactly.
__device__ void write_angles(const RopeTable& rope, std::uint32_t position, std::size_t token) {
  float* row = rope.cos_sin + token * 2 * rope.half;
  for (std::uint32_t i = threadIdx.x; i < rope.half; i += blockDim.x) {
    float sine;
    float cosine;
    sincosf(static_cast<float>(position) * rope.inv_freq[i], &sine, &cosine);
    row[i] = cosine * rope.scale;
    row[rope.half + i] = sine * rope.scale;
  }
}

template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads)
    embed_kernel(const __grid_constant__ EmbedCudaArgs args) {
  let_next_start();
  const std::uint32_t hidden_size = args.table.num_columns;
  const auto weight = load_weight<kPacks>(args.norm.weight, hidden_size);
  wait_for_previous();
  const std::size_t token = blockIdx.x;
  const Element* row = static_cast<const Element*>(args.table.data) +
                       std::size_t{token_id(args, token)} * hidden_size;
  auto x = load_row<kPacks>(row, hidden_size);
  // One copy of the long code of sincosf; the arguments are constant memory, which takes an index.
#pragma unroll 1
  for (std::uint32_t i = 0; i < args.num_ropes; ++i) {
    write_angles(args.ropes[i], args.positions[token], token);
  }
  for_each_row_pack<kPacks>(hidden_size, [&](int i, std::uint32_t) {
#pragma unroll
    for (float& value : x.packs[i].at) value *= args.scale;
  });
  store_row(x, hidden_size, args.x + token * hidden_size);
  if (args.norm.normalise) x = normalized(x, weight, args.norm.eps, hidden_size);
  store_row(x, hidden_size, static_cast<Element*>(args.h) + token * hidden_size);
}

}  // namespace

void embed_cuda(const CudaOp& op, const EmbedCudaArgs& args) {
  if (args.num_ropes > kMaxRopes) {
    throw std::invalid_argument("other: embed: " + std::to_string(args.num_ropes) +
                                " ropes, expected up to " + std::to_string(kMaxRopes));
  }
  if (args.num_tokens == 0) return;
  with_element(args.table.dtype, [&](auto element) {
    launch_by_hidden_size(args.table.num_columns, [&](auto packs, std::uint32_t threads) {
      launch(op, embed_kernel<decltype(element), packs()>, {args.num_tokens, threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
