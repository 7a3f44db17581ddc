#include "engine/step_answer.h"

#include <limits>
#include <numeric>

namespace inferno::engine {

StepAnswer::StepAnswer(std::uint32_t max_seqs, std::uint32_t max_tokens) {
  token_ids_.reserve(max_seqs);
  statuses_.reserve(max_seqs);
  logprobs_.reserve(max_seqs);
  top_starts_.reserve(std::size_t{max_seqs} + 1);
  score_starts_.reserve(std::size_t{max_seqs} + 1);
  top_ids_.reserve(std::size_t{max_seqs} * ops::kMaxTop);
  top_logprobs_.reserve(std::size_t{max_seqs} * ops::kMaxTop);
  score_logprobs_.reserve(max_tokens);
  score_top_ids_.reserve(std::size_t{max_tokens} * ops::kMaxTop);
  score_top_logprobs_.reserve(std::size_t{max_tokens} * ops::kMaxTop);
}

void StepAnswer::begin(std::uint32_t num_seqs) {
  token_ids_.assign(num_seqs, 0);
  statuses_.assign(num_seqs, RowStatus::kNone);
  logprobs_.assign(num_seqs, 0);
  top_starts_.assign(std::size_t{num_seqs} + 1, 0);
  score_starts_.assign(std::size_t{num_seqs} + 1, 0);
  top_ids_.clear();
  top_logprobs_.clear();
  score_logprobs_.clear();
  score_top_ids_.clear();
  score_top_logprobs_.clear();
}

void StepAnswer::set_sampled(std::uint32_t seq, const ops::Sampled& sampled) {
  statuses_[seq] = status_of(sampled.status);
  if (sampled.status == ops::SampleStatus::kOk) token_ids_[seq] = sampled.token_id;
}

void StepAnswer::set_logprobs(std::uint32_t seq, const ops::RowScore& score,
                              const ops::TokenLogit* top) {
  logprobs_[seq] = ops::logprob_of(score, score.logit);
  for (std::uint32_t i = 0; i < score.num_top; ++i) {
    top_ids_.push_back(top[i].token_id);
    top_logprobs_.push_back(ops::logprob_of(score, top[i].logit));
  }
  top_starts_[seq + 1] = score.num_top;
}

void StepAnswer::add_score(std::uint32_t seq, const ops::RowScore& score,
                           std::span<const ops::TokenLogit> top) {
  score_logprobs_.push_back(ops::logprob_of(score, score.logit));
  for (std::uint32_t i = 0; i < top.size(); ++i) {
    const bool is_there = i < score.num_top;
    score_top_ids_.push_back(is_there ? top[i].token_id : ops::kNoToken);
    score_top_logprobs_.push_back(is_there ? ops::logprob_of(score, top[i].logit)
                                           : -std::numeric_limits<float>::infinity());
  }
  score_starts_[seq + 1] += 1;
}

StepOutput StepAnswer::finish() {
  std::partial_sum(top_starts_.begin(), top_starts_.end(), top_starts_.begin());
  std::partial_sum(score_starts_.begin(), score_starts_.end(), score_starts_.begin());
  return {.token_ids = token_ids_,
          .statuses = statuses_,
          .logprobs = logprobs_,
          .top_starts = top_starts_,
          .top_ids = top_ids_,
          .top_logprobs = top_logprobs_,
          .score_starts = score_starts_,
          .score_logprobs = score_logprobs_,
          .score_top_ids = score_top_ids_,
          .score_top_logprobs = score_top_logprobs_};
}

RowStatus status_of(ops::SampleStatus status) {
  switch (status) {
    case ops::SampleStatus::kNotANumber:
      return RowStatus::kNotANumber;
    case ops::SampleStatus::kNothingLeft:
      return RowStatus::kNothingLeft;
    case ops::SampleStatus::kOk:
      break;
  }
  return RowStatus::kSampled;
}

}  // namespace inferno::engine
