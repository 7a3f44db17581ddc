// A thread for eight elements.
#include "ops/cuda/pack.cuh"
#include "ops/glu/activation.cuh"
#include "ops/glu/glu_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 8;
constexpr std::uint32_t kThreads = 256;

template <typename Element, ActivationKind kKind>
__global__ void __launch_bounds__(kThreads) glu_kernel(GluCudaArgs args) {
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
    out.at[j] = from_float<Element>(
        activated_as(kKind, args.activation, to_float(gate.at[j]), to_float(up.at[j])));
  }
  store_pack(static_cast<Element*>(args.out) + out_at, out);
}

template <typename Element>
auto kernel_of(ActivationKind kind) {
  switch (kind) {
    case ActivationKind::GeluTanh:
      return glu_kernel<Element, ActivationKind::GeluTanh>;
    case ActivationKind::ClampedSilu:
      return glu_kernel<Element, ActivationKind::ClampedSilu>;
    default:
      return glu_kernel<Element, ActivationKind::Silu>;
  }
}

}  // namespace

void glu_cuda(const CudaOp& op, const GluCudaArgs& args) {
  if (args.intermediate_size % kPack != 0) {
    throw std::invalid_argument("other: glu: intermediate size " +
                                std::to_string(args.intermediate_size) +
                                ", expected a multiple of 8");
  }
  const std::size_t packs = std::size_t{args.num_tokens} * (args.intermediate_size / kPack);
  if (packs == 0) return;
  if (packs > UINT32_MAX) throw std::invalid_argument("invalid_batch: glu: too many tokens");
  const auto blocks = static_cast<std::uint32_t>((packs + kThreads - 1) / kThreads);
  with_element(args.dtype, [&](auto element) {
    launch(op, kernel_of<decltype(element)>(args.activation.kind), {blocks, kThreads}, args);
  });
}

}  // namespace inferno::ops::cuda
