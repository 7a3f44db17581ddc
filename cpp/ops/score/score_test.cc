// Goal: log probabilities are those of float64, of the model's own distribution and of what is
// drawn from. Method: the definition beside it in double, by sorting; values that torch gave.
#include "ops/score/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/base/test_support.h"

namespace inferno::ops::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

double log_sum_exp(std::span<const double> values) {
  const double max = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += std::exp(value - max);
  return max + std::log(sum);
}

// What the filters of sample.h leave, as log probabilities; -infinity for what they drop.
std::vector<double> reference(std::span<const float> logits, const SampleParams& params) {
  const double temperature = params.temperature == 0 ? 1 : params.temperature;
  std::vector<double> values(logits.begin(), logits.end());
  for (double& value : values) value /= temperature;
  if (params.temperature != 0) {
    std::vector<std::size_t> ids(values.size());
    std::iota(ids.begin(), ids.end(), 0U);
    std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    std::size_t kept =
        params.top_k == 0 ? ids.size() : std::min<std::size_t>(params.top_k, ids.size());
    if (params.top_p < 1) {
      double mass = 0;
      for (std::size_t i = 0; i < kept; ++i) mass += std::exp(values[ids[i]] - values[ids[0]]);
      double sum = 0;
      std::size_t count = 0;
      while (count < kept && (count == 0 || sum < params.top_p * mass)) {
        sum += std::exp(values[ids[count++]] - values[ids[0]]);
      }
      kept = count;
    }
    const double least = values[ids[0]] + std::log(static_cast<double>(params.min_p));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const bool is_drawn = values[ids[i]] - values[ids[0]] > -40 * std::log(2);
      if (i >= kept || values[ids[i]] < least || !is_drawn) values[ids[i]] = -kInf;
    }
  }
  const double sum = log_sum_exp(values);
  for (double& value : values) value -= sum;
  return values;
}

// The likeliest ids of a reference, without those of no probability.
std::vector<std::uint32_t> reference_top(std::span<const float> logits,
                                         std::span<const double> logprobs, std::size_t count) {
  std::vector<std::uint32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0U);
  std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  std::erase_if(ids, [&](auto id) { return std::isinf(logprobs[id]); });
  ids.resize(std::min(ids.size(), count));
  return ids;
}

void check_row(std::span<const float> logits, const Kept* kept, const SampleParams& params,
               std::uint32_t token_id, std::uint32_t num_top) {
  const auto expected = reference(logits, params);
  std::vector<TokenLogit> top(num_top);
  const RowScore score = score_row(logits, kept, token_id, top);
  CHECK(std::abs(logprob_of(score, score.logit) - expected[token_id]) < 1e-4);
  const auto ids = reference_top(logits, expected, num_top);
  REQUIRE(score.num_top == ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    CHECK(top[i].token_id == ids[i]);
    CHECK(std::abs(logprob_of(score, top[i].logit) - expected[ids[i]]) < 1e-4);
  }
}

TEST_CASE("the model's own distribution is that of float64") {
  Random random(3);
  for (const std::size_t vocab : {1U, 3U, 16U, 17U, 1000U, 32000U, 128256U}) {
    CAPTURE(vocab);
    for (const float deviation : {0.0F, 1e-3F, 1.0F, 3.0F, 12.0F}) {
      CAPTURE(deviation);
      auto logits = random.normals(vocab);
      for (float& logit : logits) logit = 30 + deviation * logit;
      const auto id = random.integer(0, static_cast<std::uint32_t>(vocab) - 1);
      for (const std::uint32_t num_top : {0U, 1U, 5U, 20U}) {
        check_row(logits, nullptr, {}, id, num_top);
      }
    }
  }
}

TEST_CASE("ties are ranked by id, -0 and +0 among them, and -infinity is no alternative") {
  const std::vector<float> logits = {-0.0F, 1, 0, -kInf, 1, 0.0F, -2};
  std::vector<TokenLogit> top(20);
  const RowScore score = score_row(logits, nullptr, 3, top);
  REQUIRE(score.num_top == 6);
  for (std::uint32_t i = 0; const std::uint32_t id : {1U, 4U, 0U, 2U, 5U, 6U}) {
    CHECK(top[i++].token_id == id);
  }
  CHECK(logprob_of(score, score.logit) == -kInf);
}

TEST_CASE("what was drawn from is renormalised over what the filters keep") {
  Random random(4);
  const std::vector<SampleParams> cases = {
      {.temperature = 0},
      {.temperature = 1},
      {.temperature = 0.7F, .top_k = 5},
      {.temperature = 1.5F, .top_p = 0.8F},
      {.temperature = 1.5F, .min_p = 0.1F},
      {.temperature = 0.9F, .top_k = 50, .top_p = 0.95F, .min_p = 0.01F},
      {.temperature = 2, .top_k = 1},
  };
  for (const std::size_t vocab : {1U, 60U, 5000U}) {
    for (SampleParams params : cases) {
      CAPTURE(params.temperature);
      CAPTURE(params.top_k);
      auto logits = random.normals(vocab);
      for (float& logit : logits) logit *= 2;
      std::vector<float> weights(vocab);
      std::vector<std::uint64_t> ranked(vocab);
      for (std::uint32_t position = 0; position < 20; ++position) {
        params.position = position;
        Kept kept;
        const Sampled sampled = sample_row(logits, params, {weights, ranked}, &kept);
        REQUIRE(sampled.status == SampleStatus::kOk);
        check_row(logits, &kept, params, sampled.token_id, 20);
      }
    }
  }
}

// torch.log_softmax of the logits, and of what TemperatureLogitsWarper(0.8), TopKLogitsWarper(5),
// TopPLogitsWarper(0.9) and MinPLogitsWarper(0.05) of transformers 5.17 leave of the processed ones
// (process_logits_test.cc).
TEST_CASE("gives what torch and transformers give") {
  const std::vector<float> raw = {1.5F, -0.75F, 0.0F, 2.25F, -3.0F, 0.5F,
                                  4.0F, -1.25F, 3.5F, 0.25F, -0.5F, 2.0F};
  const RowScore own = score_row(raw, nullptr, 6, {});
  CHECK(std::abs(logprob_of(own, own.logit) + 0.7398760528198605) < 1e-6);
  const std::vector<float> processed = {1.1538461F,   -2.075F,     -1.5F, -kInf,
                                        -3.9F,        -kInf,       -kInf, -0.975F,
                                        2.330769062F, -0.9076923F, -kInf, -kInf};
  const SampleParams params{.temperature = 0.8F, .top_k = 5, .top_p = 0.9F, .min_p = 0.05F};
  std::vector<float> weights(12);
  std::vector<std::uint64_t> ranked(12);
  Kept kept;
  REQUIRE(sample_row(processed, params, {weights, ranked}, &kept).status == SampleStatus::kOk);
  std::vector<TokenLogit> top(20);
  const RowScore drawn = score_row(processed, &kept, 0, top);
  REQUIRE(drawn.num_top == 2);
  CHECK(std::abs(logprob_of(drawn, top[0].logit) + 0.20673804962043402) < 1e-6);
  CHECK(std::abs(logprob_of(drawn, drawn.logit) + 1.677891547316357) < 1e-6);
}

TEST_CASE("a row that is no distribution has no log probability") {
  for (const std::vector<float>& logits :
       {std::vector<float>{0, std::nanf(""), 1}, {0, kInf, 1}, {-kInf, -kInf}}) {
    std::vector<TokenLogit> top(3);
    const RowScore score = score_row(logits, nullptr, 0, top);
    CHECK(score.num_top == 0);
    CHECK(std::isnan(logprob_of(score, score.logit)));
  }
}

}  // namespace
}  // namespace inferno::ops::test
