// The answer to a step as a backend puts it together, sequence by sequence in their order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "ops/sample/sample.h"
#include "ops/score/score.h"

namespace inferno::engine {

class StepAnswer {
 public:
  // Takes all memory that a step of these sizes needs.
  StepAnswer(std::uint32_t max_seqs, std::uint32_t max_tokens);

  // Forgets what was; no sequence has sampled.
  void begin(std::uint32_t num_seqs);
  void set_sampled(std::uint32_t seq, const ops::Sampled& sampled);
  // Of the sampled token; score.num_top alternatives stand in `top`.
  void set_logprobs(std::uint32_t seq, const ops::RowScore& score, const ops::TokenLogit* top);
  // Of the next scored token, with `num_top` alternatives.
  void add_score(std::uint32_t seq, const ops::RowScore& score,
                 std::span<const ops::TokenLogit> top);

  // The whole; logits and times are the caller's. Once for each begin.
  StepOutput finish();

 private:
  std::vector<std::uint32_t> token_ids_;
  std::vector<RowStatus> statuses_;
  std::vector<float> logprobs_;
  std::vector<std::uint32_t> top_starts_;  // of sequence s + 1 its own number, until finish
  std::vector<std::uint32_t> top_ids_;
  std::vector<float> top_logprobs_;
  std::vector<std::uint32_t> score_starts_;
  std::vector<float> score_logprobs_;
  std::vector<std::uint32_t> score_top_ids_;
  std::vector<float> score_top_logprobs_;
};

RowStatus status_of(ops::SampleStatus status);

}  // namespace inferno::engine
