// The seats' samplers on the CPU, and what they do with rows of logits.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/step_answer.h"
#include "ops/base/thread_pool.h"
#include "ops/sample/sampler.h"

namespace inferno::engine {

// Of the workspace. V: vocab_size.
struct CpuSamplerArrays {
  ops::SeatStates states;           // of max_batch_size seats
  float* processed = nullptr;       // [threads, V] a row under its rules
  float* weights = nullptr;         // [threads, V]
  std::uint64_t* ranked = nullptr;  // [threads, V]
};

class CpuSampler {
 public:
  CpuSampler(ThreadPool& threads, const CpuSamplerArrays& arrays, std::uint32_t max_batch_size);

  void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history);
  std::uint32_t last_sampled(std::uint32_t seat) const { return last_sampled_[seat]; }

  // Draws a token for each row of logits [R, V], also into its seat. row_seqs [R] ascend.
  void sample(const StepBatch& batch, std::span<const std::uint32_t> row_seqs, const float* logits,
              StepAnswer& answer);
  // Scores a row of logits [R, V] for each of R tokens.
  void score(const StepBatch& batch, std::span<const ScoredToken> tokens, const float* logits,
             StepAnswer& answer);

 private:
  struct Row {
    ops::Sampled sampled;
    ops::RowScore score;
    std::array<ops::TokenLogit, ops::kMaxTop> top;
  };
  void sample_row(const StepBatch& batch, std::uint32_t seq, std::span<const float> logits,
                  std::uint32_t thread, Row& row);

  ThreadPool& threads_;
  CpuSamplerArrays arrays_;
  std::vector<ops::SeatSampler> seats_;      // [max_batch_size]
  std::vector<std::uint32_t> last_sampled_;  // [max_batch_size]
  std::vector<Row> rows_;                    // [max_batch_size]
};

}  // namespace inferno::engine
