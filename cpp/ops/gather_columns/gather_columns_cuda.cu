// A thread for eight neighbouring columns of a token. Their sources lie anywhere in its row, which
// the nearest cache keeps.
#include "ops/cuda/pack.cuh"
#include "ops/gather_columns/gather_columns_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    gather_columns_kernel(GatherColumnsCudaArgs args, std::uint32_t num_packs) {
  let_next_start();
  const std::uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const std::uint32_t packs = args.num_columns / kPack;  // of a row
  const std::uint32_t column = index % packs * kPack;
  const std::size_t row = std::size_t{index / packs} * args.num_columns;
  // A weight: nobody writes it while steps run.
  const auto order = load_pack<std::uint32_t, kPack>(args.order + column);
  wait_for_previous();
  const auto* x = static_cast<const std::uint16_t*>(args.x) + row;
  Pack<std::uint16_t, kPack> out;
#pragma unroll
  for (int j = 0; j < kPack; ++j) out.at[j] = x[order.at[j]];
  store_pack(static_cast<std::uint16_t*>(args.out) + row + column, out);
}

}  // namespace

void gather_columns_cuda(const CudaOp& op, const GatherColumnsCudaArgs& args) {
  if (args.num_columns % kPack != 0) {
    throw std::invalid_argument("other: gather_columns: " + std::to_string(args.num_columns) +
                                " columns, expected a multiple of 8");
  }
  const std::size_t packs = std::size_t{args.num_tokens} * args.num_columns / kPack;
  if (packs == 0) return;
  if (packs > UINT32_MAX - kThreads) {
    throw std::invalid_argument("invalid_batch: gather_columns: too many tokens");
  }
  const auto num_packs = static_cast<std::uint32_t>(packs);
  launch(op, gather_columns_kernel, {(num_packs + kThreads - 1) / kThreads, kThreads}, args,
         num_packs);
}

}  // namespace inferno::ops::cuda
