// A thread for eight elements, which have a gate each or one together.
#include "ops/cuda/pack.cuh"
#include "ops/sigmoid_gate/sigmoid_gate_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kThreads = 256;

// The fast exponential and quotient, as in activation.cuh: their errors vanish in 16 bits.
__device__ __forceinline__ float gated(float gate, float x) {
  return __fdividef(x, 1.0F + __expf(-gate));
}

template <typename Element, bool kOwnGates>
__global__ void __launch_bounds__(kThreads)
    sigmoid_gate_kernel(SigmoidGateCudaArgs args, std::uint32_t num_packs) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const std::size_t at = std::size_t{index} * kPack;
  const auto* gates_at = static_cast<const Element*>(args.gates);
  Element* x_at = static_cast<Element*>(args.x) + at;
  auto x = load_pack<Element, kPack>(x_at);
  Pack<Element, kPack> gates;
  if constexpr (kOwnGates) {
    gates = load_pack<Element, kPack>(gates_at + at);
  } else {
    const Element gate = gates_at[at / args.width];
#pragma unroll
    for (Element& each : gates.at) each = gate;
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    x.at[j] = from_float<Element>(gated(to_float(gates.at[j]), to_float(x.at[j])));
  }
  store_pack(x_at, x);
}

}  // namespace

void sigmoid_gate_cuda(const CudaOp& op, const SigmoidGateCudaArgs& args) {
  const bool own_gates = args.width == 1;
  const std::uint32_t neighbours = own_gates ? args.num_gates : args.width;
  if (neighbours % kPack != 0) {
    throw std::invalid_argument("other: sigmoid_gate: " + std::to_string(neighbours) +
                                (own_gates ? " gates" : " elements of a gate") +
                                ", expected a multiple of 8");
  }
  const std::size_t packs = std::size_t{args.num_tokens} * args.num_gates * args.width / kPack;
  if (packs == 0) return;
  if (packs > UINT32_MAX - kThreads) {
    throw std::invalid_argument("invalid_batch: sigmoid_gate: too many tokens");
  }
  const auto num_packs = static_cast<std::uint32_t>(packs);
  const std::uint32_t blocks = (num_packs + kThreads - 1) / kThreads;
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto kernel =
        own_gates ? sigmoid_gate_kernel<Element, true> : sigmoid_gate_kernel<Element, false>;
    launch(op, kernel, {blocks, kThreads}, args, num_packs);
  });
}

}  // namespace inferno::ops::cuda
