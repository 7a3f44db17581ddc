// A warp for each token. A lane has the scores of experts lane, lane + 32, …; every choice is the
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

// As an order of integers: the largest value first, of equal ones the lower expert. NaNs count as
// minus infinity; 0 is below all.
__device__ std::uint64_t rank_of(float value, std::uint32_t expert) {
  if (isnan(value)) value = -INFINITY;
  value += 0.0F;  // of both zeros the positive
  const std::uint32_t bits = __float_as_uint(value);
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

// A row's scores, over a warp: its logits, or their sigmoids.
template <int kScores>
struct Row {
  float scores[kScores];
  std::uint64_t ranks[kScores];

  template <bool kSigmoid>
  static __device__ Row load(const RouteCudaArgs& args, std::uint32_t token) {
    const std::uint32_t num_experts = args.rule.num_experts;
    const float* logits = args.logits + std::size_t{token} * num_experts;
    Row row;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const std::uint32_t expert = threadIdx.x % 32 + i * 32;
      const bool exists = expert < num_experts;
      row.scores[i] = exists ? logits[expert] : -INFINITY;
      float rank = row.scores[i];
      if constexpr (kSigmoid) {
        rank = row.scores[i] = 1.0F / (1.0F + expf(-row.scores[i]));
        if (exists && args.score_correction != nullptr) rank += args.score_correction[expert];
      }
      row.ranks[i] = exists ? rank_of(rank, expert) : 0;
    }
    return row;
  }

  // Takes the best one out.
  __device__ std::uint32_t take_best() {
    std::uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) best = ranks[i] > best ? ranks[i] : best;
    best = warp_max(best);
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if (ranks[i] == best) ranks[i] = 0;
    }
    return kAll - static_cast<std::uint32_t>(best);
  }

  __device__ float score(std::uint32_t expert) const {
    float mine = 0.0F;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if (i == static_cast<int>(expert / 32)) mine = scores[i];
    }
    return __shfl_sync(kAll, mine, static_cast<int>(expert % 32));
  }

  __device__ float sum_of_exponentials(float largest) const {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kScores; ++i) sum += expf(scores[i] - largest);
    return warp_sum(sum);
  }
};

template <int kScores, bool kSigmoid>
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
  auto row = Row<kScores>::template load<kSigmoid>(args, token);
  std::uint32_t id = 0;  // of lane i: the i-th
  float score = -INFINITY;
  for (std::uint32_t i = 0; i < k; ++i) {
    const std::uint32_t best = row.take_best();
    const float value = row.score(best);
    if (lane == i) {
      id = best;
      score = value;
    }
  }
  float term = 0.0F;
  float divisor = 1.0F;
  if constexpr (kSigmoid) {
    if (lane < k) term = score;
    if (rule.renormalise) divisor = warp_sum(term) + kLeastScoreSum;
  } else {
    const float largest = __shfl_sync(kAll, score, 0);
    if (lane < k) term = expf(score - largest);
    divisor = warp_sum(term);
    if (rule.kind == RouterKind::SoftmaxTopK) {
      const float all = row.sum_of_exponentials(largest);
      if (!rule.renormalise || isnan(all)) divisor = all;
    }
  }
  if (lane >= k) return;
  ids[lane] = id;
  args.weights[std::size_t{token} * k + lane] = term / divisor * rule.routed_scale;
}

// For as many experts.
template <bool kSigmoid>
auto kernel_for(std::uint32_t num_experts) {
  return num_experts <= 32    ? route_kernel<1, kSigmoid>
         : num_experts <= 64  ? route_kernel<2, kSigmoid>
         : num_experts <= 128 ? route_kernel<4, kSigmoid>
                              : route_kernel<8, kSigmoid>;
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
  const bool sigmoid = args.rule.kind == RouterKind::Sigmoid;
  const auto kernel = sigmoid ? kernel_for<true>(num_experts) : kernel_for<false>(num_experts);
  launch(op, kernel, {(args.num_tokens + kWarps - 1) / kWarps, kWarps * 32}, args);
}

}  // namespace inferno::ops::cuda
