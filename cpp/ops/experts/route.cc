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

float sigmoid(float logit) { return 1.0F / (1.0F + std::exp(-logit)); }

// By what experts are chosen.
float rank_of(const RouteArgs& args, const float* logits, std::uint32_t expert) {
  float rank = logits[expert];
  if (args.rule.kind == RouterKind::Sigmoid) {
    rank = sigmoid(rank);
    if (args.score_correction != nullptr) rank += args.score_correction[expert];
  }
  return std::isnan(rank) ? -std::numeric_limits<float>::infinity() : rank;
}

// The k best, the best first. Sorted as they come, so that each is ranked once; `ranks` [k] is
// scratch.
void choose(const RouteArgs& args, const float* logits, std::uint32_t* ids, float* ranks) {
  const std::uint32_t k = args.rule.experts_per_token;
  std::uint32_t num_chosen = 0;
  for (std::uint32_t expert = 0; expert < args.rule.num_experts; ++expert) {
    const float rank = rank_of(args, logits, expert);
    if (num_chosen == k && !(rank > ranks[k - 1])) continue;
    std::uint32_t place = num_chosen < k ? num_chosen++ : k - 1;
    for (; place > 0 && rank > ranks[place - 1]; --place) {
      ids[place] = ids[place - 1];
      ranks[place] = ranks[place - 1];
    }
    ids[place] = expert;
    ranks[place] = rank;
  }
}

void weigh_by_sigmoid(const RouteRule& rule, const float* logits, const std::uint32_t* ids,
                      float* weights) {
  float sum = kLeastScoreSum;
  for (std::uint32_t i = 0; i < rule.experts_per_token; ++i) {
    sum += weights[i] = sigmoid(logits[ids[i]]);
  }
  const float divisor = rule.renormalise ? sum : 1.0F;
  for (std::uint32_t i = 0; i < rule.experts_per_token; ++i) {
    weights[i] = weights[i] / divisor * rule.routed_scale;
  }
}

void weigh_by_softmax(const RouteRule& rule, const float* logits, const std::uint32_t* ids,
                      float* weights) {
  const std::uint32_t k = rule.experts_per_token;
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

void route_token(const RouteArgs& args, const float* logits, std::uint32_t* ids, float* weights) {
  choose(args, logits, ids, weights);
  if (args.rule.kind == RouterKind::Sigmoid) {
    weigh_by_sigmoid(args.rule, logits, ids, weights);
  } else {
    weigh_by_softmax(args.rule, logits, ids, weights);
  }
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
      route_token(args, args.logits + t * num_experts, args.expert_ids + t * k,
                  args.weights + t * k);
    }
  });
}

}  // namespace inferno::ops
