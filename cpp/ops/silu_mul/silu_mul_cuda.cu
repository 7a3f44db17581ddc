// A thread for eight elements.
#include "ops/cuda/elementwise_cuda.cuh"
#include "ops/cuda/elementwise_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kThreads = 256;

// The fast exponential and quotient: their errors, a few 2^-23, vanish in elements of 16 bits, and
// the accurate ones would take longer than the memory.
__device__ float silu_mul(float gate, float up) {
  return __fdividef(gate, 1.0F + __expf(-gate)) * up;
}

template <typename Element>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t packs = args.intermediate_size / kPack;  // of a row
  const std::size_t index = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= std::size_t{args.num_tokens} * packs) return;
  const std::size_t out_at = index * kPack;
  const std::size_t token = static_cast<std::uint32_t>(index) / packs;
  const Element* gate_at =
      static_cast<const Element*>(args.gate_up) + token * args.intermediate_size + out_at;
  const auto gate = load_pack<Element, kPack>(gate_at);
  const auto up = load_pack<Element, kPack>(gate_at + args.intermediate_size);
  Pack<Element, kPack> out;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    out.at[j] = from_float<Element>(silu_mul(to_float(gate.at[j]), to_float(up.at[j])));
  }
  store_pack(static_cast<Element*>(args.out) + out_at, out);
}

}  // namespace

void silu_mul_cuda(const CudaOp& op, const SiluMulCudaArgs& args) {
  if (args.intermediate_size % kPack != 0) {
    throw std::invalid_argument("other: silu_mul: intermediate size " +
                                std::to_string(args.intermediate_size) +
                                ", expected a multiple of 8");
  }
  const std::size_t packs = std::size_t{args.num_tokens} * (args.intermediate_size / kPack);
  if (packs == 0) return;
  if (packs > UINT32_MAX) throw std::invalid_argument("invalid_batch: silu_mul: too many tokens");
  const auto blocks = static_cast<std::uint32_t>((packs + kThreads - 1) / kThreads);
  with_element(args.dtype, [&](auto element) {
    launch(op, silu_mul_kernel<decltype(element)>, {blocks, kThreads}, args);
  });
}

}  // namespace inferno::ops::cuda
