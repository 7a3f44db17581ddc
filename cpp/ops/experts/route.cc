#include "ops/experts/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace inferno::ops {
namespace {

// Below this many comparisons, waking a thread takes longer than the work.
constexpr std::uint32_t kComparisonsPerChunk = 65536;

float rank_of(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

// The best expert of those that rank after `last`, which is E for the first choice.
std::uint32_t next_best(const float* logits, std::uint32_t num_experts, std::uint32_t last) {
  const auto before = [&](std::uint32_t a, std::uint32_t b) {
    const float rank_a = rank_of(logits[a]);
    const float rank_b = rank_of(logits[b]);
    return rank_a > rank_b || (rank_a == rank_b && a < b);
  };
  std::uint32_t best = num_experts;
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
    if (last != num_experts && !before(last, expert)) continue;
    if (best == num_experts || before(expert, best)) best = expert;
  }
  return best;
}

void route_token(const RouteRule& rule, const float* logits, std::uint32_t* ids, float* weights) {
  const std::uint32_t k = rule.experts_per_token;
  std::uint32_t last = rule.num_experts;
  for (std::uint32_t i = 0; i < k; ++i) last = ids[i] = next_best(logits, rule.num_experts, last);
  const float largest = logits[ids[0]];
  float chosen = 0.0F;
  for (std::uint32_t i = 0; i < k; ++i) chosen += weights[i] = std::exp(logits[ids[i]] - largest);
  float divisor = chosen;
  if (rule.kind == RouterKind::SoftmaxTopK) {
    float all = 0.0F;
    for (std::uint32_t e = 0; e < rule.num_experts; ++e) all += std::exp(logits[e] - largest);
    // What a NaN among the others makes of all weights, it makes of them renormalised too.
    divisor = rule.renormalise && !std::isnan(all) ? chosen : all;
  }
  for (std::uint32_t i = 0; i < k; ++i) weights[i] = weights[i] / divisor * rule.routed_scale;
}

}  // namespace

void check_route_rule(const RouteRule& rule) {
  if (rule.experts_per_token == 0 || rule.experts_per_token > rule.num_experts) {
    throw std::invalid_argument("other: " + std::to_string(rule.experts_per_token) +
                                " experts for each token, expected 1 to " +
                                std::to_string(rule.num_experts));
  }
}

void route(const OpContext& context, const RouteArgs& args) {
  if (args.num_tokens == 0) return;
  check_route_rule(args.rule);
  const std::size_t num_experts = args.rule.num_experts;
  const std::size_t k = args.rule.experts_per_token;
  const std::size_t comparisons = num_experts * k;
  const auto step =
      static_cast<std::uint32_t>(std::max<std::size_t>(1, kComparisonsPerChunk / comparisons));
  const std::uint32_t num_chunks = (args.num_tokens + step - 1) / step;
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t end = std::min<std::size_t>(args.num_tokens, (chunk + 1) * std::size_t{step});
    for (std::size_t t = chunk * std::size_t{step}; t < end; ++t) {
      route_token(args.rule, args.logits + t * num_experts, args.expert_ids + t * k,
                  args.weights + t * k);
    }
  });
}

}  // namespace inferno::ops
