// A block for each token, which keeps its row in registers; after them blocks for the angles, a
// thread for each.
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

// Angle `index` of all ropes' tables, one table after the other. Accurate for large positions too:
// sincosf reduces the argument exactly.
__device__ void write_angle(const EmbedCudaArgs& args, std::uint32_t index) {
  for (std::uint32_t r = 0; r < args.num_ropes; ++r) {
    const RopeTable& rope = args.ropes[r];
    const std::uint32_t size = args.num_tokens * rope.half;
    if (index >= size) {
      index -= size;
      continue;
    }
    const std::size_t token = index / rope.half;
    const std::uint32_t i = index % rope.half;
    float sine;
    float cosine;
    sincosf(static_cast<float>(args.positions[token]) * rope.inv_freq[i], &sine, &cosine);
    float* row = rope.cos_sin + token * 2 * rope.half;
    row[i] = cosine * rope.scale;
    row[rope.half + i] = sine * rope.scale;
    return;
  }
}

template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads)
    embed_kernel(const __grid_constant__ EmbedCudaArgs args) {
  let_next_start();
  if (blockIdx.x >= args.num_tokens) {
    wait_for_previous();
    return write_angle(args, (blockIdx.x - args.num_tokens) * blockDim.x + threadIdx.x);
  }
  const std::uint32_t hidden_size = args.table.num_columns;
  const auto weight = load_weight<kPacks>(args.norm.weight, hidden_size);
  wait_for_previous();
  const std::size_t token = blockIdx.x;
  const Element* row = static_cast<const Element*>(args.table.data) +
                       std::size_t{token_id(args, token)} * hidden_size;
  auto x = load_row<kPacks>(row, hidden_size);
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
  std::uint32_t num_angles = 0;
  for (std::uint32_t r = 0; r < args.num_ropes; ++r) {
    num_angles += args.num_tokens * args.ropes[r].half;
  }
  with_element(args.table.dtype(), [&](auto element) {
    launch_by_hidden_size(args.table.num_columns, [&](auto packs, std::uint32_t threads) {
      const std::uint32_t blocks = args.num_tokens + (num_angles + threads - 1) / threads;
      launch(op, embed_kernel<decltype(element), packs()>, {blocks, threads}, args);
    });
  });
}

}  // namespace inferno::ops::cuda
