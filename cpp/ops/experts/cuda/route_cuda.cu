// A warp for each token. A lane has the logits of experts lane, lane + 32, …; every choice is the
// best of all lanes' bests.
#include <cfloat>
#include <stdexcept>
#include <string>

#include "ops/cuda/cuda_device.cuh"
#include "ops/experts/cuda/route_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kWarps = 4;
constexpr std::uint32_t kAll = 0xFFFFFFFF;

// As an order of integers: the largest logit first, of equal ones the lower expert. NaNs count as
// minus infinity; 0 is below all.
__device__ std::uint64_t rank_of(float logit, std::uint32_t expert) {
  if (isnan(logit)) logit = -INFINITY;
  logit += 0.0F;  // of both zeros the positive
  const std::uint32_t bits = __float_as_uint(logit);
  const std::uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000U;
  return std::uint64_t{ordered} << 32 | (kAll - expert);
}

__device__ std::uint64_t warp_max(std::uint64_t value) {
  for (int lane = 16; lane > 0; lane /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kAll, value, lane);
    if (other > value) value = other;
  }
  return value;
}

// A row's logits, over a warp.
template <int kLogits>
struct Row {
  float logits[kLogits];
  std::uint64_t ranks[kLogits];

  __device__ Row(const float* from, std::uint32_t num_experts) {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
      const std::uint32_t expert = threadIdx.x % 32 + i * 32;
      const bool exists = expert < num_experts;
      logits[i] = exists ? from[expert] : -INFINITY;
      ranks[i] = exists ? rank_of(logits[i], expert) : 0;
    }
  }

  // Takes the best one out.
  __device__ std::uint32_t take_best() {
    std::uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) best = ranks[i] > best ? ranks[i] : best;
    best = warp_max(best);
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
      if (ranks[i] == best) ranks[i] = 0;
    }
    return kAll - static_cast<std::uint32_t>(best);
  }

  __device__ float logit(std::uint32_t expert) const {
    float mine = 0.0F;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
      if (i == static_cast<int>(expert / 32)) mine = logits[i];
    }
    return __shfl_sync(kAll, mine, static_cast<int>(expert % 32));
  }

  __device__ float sum_of_exponentials(float largest) const {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kLogits; ++i) sum += expf(logits[i] - largest);
    return warp_sum(sum);
  }
};

template <int kLogits>
__global__ void __launch_bounds__(kWarps * 32) route_kernel(const RouteCudaArgs args) {
  // Not before: the next kernel's blocks would find places where the kernels before still have
  // theirs, two on one multiprocessor.
  wait_for_previous();
  let_next_start();
  const std::uint32_t token = blockIdx.x * kWarps + threadIdx.x / 32;
  if (token >= args.num_tokens) return;
  const std::uint32_t lane = threadIdx.x % 32;
  const RouteRule& rule = args.rule;
  const std::uint32_t k = rule.experts_per_token;
  std::uint32_t* ids = args.expert_ids + std::size_t{token} * k;
  if (args.slots != nullptr && args.slots[token] == kAll) {
    if (lane < k) {
      ids[lane] = kNoExpert;
      args.weights[std::size_t{token} * k + lane] = 0.0F;
    }
    return;
  }
  Row<kLogits> row(args.logits + std::size_t{token} * rule.num_experts, rule.num_experts);
  std::uint32_t id = 0;  // of lane i: the i-th
  float logit = -INFINITY;
  for (std::uint32_t i = 0; i < k; ++i) {
    const std::uint32_t best = row.take_best();
    const float value = row.logit(best);
    if (lane == i) {
      id = best;
      logit = value;
    }
  }
  const float largest = __shfl_sync(kAll, logit, 0);
  const float term = lane < k ? expf(logit - largest) : 0.0F;
  float divisor = warp_sum(term);
  if (rule.kind == RouterKind::SoftmaxTopK) {
    const float all = row.sum_of_exponentials(largest);
    if (!rule.renormalise || isnan(all)) divisor = all;
  }
  if (lane >= k) return;
  ids[lane] = id;
  args.weights[std::size_t{token} * k + lane] = term / divisor * rule.routed_scale;
}

}  // namespace

void route_cuda(const CudaOp& op, const RouteCudaArgs& args) {
  check_route_rule(args.rule);
  const std::uint32_t num_experts = args.rule.num_experts;
  if (num_experts > kMaxExperts || args.rule.experts_per_token > kMaxExpertsPerToken) {
    throw std::invalid_argument("other: route: " + std::to_string(args.rule.experts_per_token) +
                                " of " + std::to_string(num_experts) + " experts, expected up to " +
                                std::to_string(kMaxExpertsPerToken) + " of " +
                                std::to_string(kMaxExperts));
  }
  if (args.num_tokens == 0) return;
  const auto kernel = num_experts <= 32    ? route_kernel<1>
                      : num_experts <= 64  ? route_kernel<2>
                      : num_experts <= 128 ? route_kernel<4>
                                           : route_kernel<8>;
  launch(op, kernel, {(args.num_tokens + kWarps - 1) / kWarps, kWarps * 32}, args);
}

}  // namespace inferno::ops::cuda
