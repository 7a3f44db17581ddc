// The seats' samplers on a GPU: what of them the host keeps, and the launches of a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/cuda_memory.h"
#include "engine/cuda/cuda_step.h"
#include "ops/cuda/cuda_op.h"
#include "ops/process_logits/process_logits.h"
#include "ops/sample/sampler.h"
#include "ops/score/score.h"

namespace inferno::engine {

// Of the workspace. R: rows of logits, T: tokens of the largest step, V: vocab_size.
struct CudaSamplerArrays {
  ops::SeatStates states;                 // of max_batch_size seats
  std::uint32_t* masks = nullptr;         // [R, mask_words(V)] of a step
  float* processed = nullptr;             // [R, V] rows under their rules; over the layers' scratch
  ops::Sampled* sampled = nullptr;        // [R]
  std::uint32_t* sampled_ids = nullptr;   // [max_batch_size] the last token of each seat
  ops::Kept* kept = nullptr;              // [R]
  ops::RowScore* scores = nullptr;        // [R]
  ops::TokenLogit* top = nullptr;         // [R, kMaxTop]
  std::byte* scored = nullptr;            // ScoredArrays
  ops::RowScore* token_scores = nullptr;  // [T]
  ops::TokenLogit* token_top = nullptr;   // [T, kMaxTop]
  void* sample = nullptr;                 // the ops' own, zeroed once
  void* score = nullptr;
};

class CudaSampler {
 public:
  // `longest`: most tokens of a sequence.
  CudaSampler(const ops::cuda::CudaOp& op, const CudaSamplerArrays& arrays,
              std::uint32_t max_batch_size, std::uint32_t longest);

  // Steps that are under way go on with what the seat had before.
  void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history);
  // [max_batch_size]
  std::span<const ops::SeatSampler> seats() const { return seats_; }

  // Puts a step's own masks and scored tokens into the stream, where it has some.
  void upload(const StepSlot& slot);
  // Puts into the stream: a token for each of the step's rows of logits [R, V], into the row's seat
  // too, and the answer's way to the slot.
  void sample(const StepSlot& slot, const StepArrays& step, float* logits);
  // The same of the scores of `count` of its scored tokens from `first` on.
  void score(const StepSlot& slot, std::uint32_t first, std::uint32_t count, float* logits);

 private:
  void score_rows(const StepArrays& step, const ops::LogitRules* rules, std::uint32_t num_rows,
                  float* logits);
  std::byte* room_for(std::uint64_t bytes);
  bool copy_lists(const ops::SeatSampler& sampler, const ops::SeatLists& lists);
  void copy(void* to, const void* from, std::uint64_t bytes, cudaMemcpyKind kind);

  ops::cuda::CudaOp op_;
  CudaSamplerArrays arrays_;
  std::vector<ops::SeatSampler> seats_;
  // Lists and tokens on their way to the device. Taken from the front until it is full, which takes
  // so many sequences that the first have long arrived.
  PinnedBuffer staging_;
  std::uint64_t staged_bytes_ = 0;
  CudaEvent arrived_;  // all that is staged
};

}  // namespace inferno::engine
