// A thread for four logits; the last ones one by one.
#include "ops/cuda/pack.cuh"
#include "ops/softcap/softcap_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr int kPack = 4;
constexpr std::uint32_t kThreads = 256;

__device__ float capped(const SoftcapCudaArgs& args, float logit) {
  const float scaled = args.scale * logit;
  return args.cap == 0.0F ? scaled : args.cap * tanhf(scaled / args.cap);
}

__global__ void __launch_bounds__(kThreads) softcap_kernel(SoftcapCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::size_t begin = (std::size_t{blockIdx.x} * kThreads + threadIdx.x) * kPack;
  if (begin + kPack <= args.count) {
    auto pack = load_pack<float, kPack>(args.logits + begin);
#pragma unroll
    for (float& logit : pack.at) logit = capped(args, logit);
    store_pack(args.logits + begin, pack);
    return;
  }
  for (std::size_t i = begin; i < args.count; ++i) args.logits[i] = capped(args, args.logits[i]);
}

}  // namespace

void softcap_cuda(const CudaOp& op, const SoftcapCudaArgs& args) {
  if (args.count == 0) return;
  constexpr std::size_t kBlockSize = std::size_t{kThreads} * kPack;
  const std::size_t blocks = (args.count + kBlockSize - 1) / kBlockSize;
  if (blocks > INT32_MAX) throw std::invalid_argument("invalid_batch: softcap: too many logits");
  launch(op, softcap_kernel, {static_cast<std::uint32_t>(blocks), kThreads}, args);
}

}  // namespace inferno::ops::cuda
