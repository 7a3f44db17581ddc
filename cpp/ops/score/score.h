// Log probabilities: of a token, and of the likeliest ones, in a row of logits.
//
//   logprob_i = (logit_i - max) / temperature - ln(mass / 2^40)
//
// `mass` is the sum of the whole weights of sample.h, exact in any order; so a row's bits depend on
// the row alone and are the same on every device. The model's own distribution keeps every id at
// temperature 1; what was drawn from is given as `Kept`. Within 1e-5 of float64 for a token at
// least e^-60 as likely as the best one.
#pragma once

#include <cstdint>
#include <span>

#include "ops/sample/sample.h"

namespace inferno::ops {

inline constexpr std::uint32_t kMaxTop = 20;
inline constexpr std::uint32_t kNoToken = 0xFFFFFFFF;

struct TokenLogit {
  std::uint32_t token_id = 0;
  float logit = 0;
};

// What the log probabilities of a row are made of.
struct RowScore {
  std::uint64_t mass = 0;  // 0: the row has a NaN, a +infinity or nothing but -infinity
  float max = 0;
  float temperature = 1;
  float logit = 0;            // of the token that was asked for
  std::uint32_t num_top = 0;  // fewer than asked for where fewer ids have a probability
};

// The top.size() likeliest ids, at most kMaxTop, go to `top`, likeliest first, equal ones by id.
// `token_id`, or kNoToken: the one that is asked for. `kept`: null for the model's own distribution
// (its max is not read then).
RowScore score_row(std::span<const float> logits, const Kept* kept, std::uint32_t token_id,
                   std::span<TokenLogit> top);

// The log probability of a logit of the row; NaN where the row has none.
float logprob_of(const RowScore& score, float logit);

}  // namespace inferno::ops
