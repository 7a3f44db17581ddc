// The arrays of one step on a GPU, and the page-locked memory that they come from.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <vector>

#include "engine/batch.h"
#include "engine/cuda/cuda_memory.h"
#include "engine/step_answer.h"
#include "ops/attention/cuda/attention_cuda.h"
#include "ops/sample/sampler.h"

namespace inferno::engine {

// How many of what a step has, padding included.
struct StepCounts {
  std::uint32_t num_tokens = 0;   // T
  std::uint32_t num_seqs = 0;     // S
  std::uint32_t num_rows = 0;     // R, of logits
  std::uint32_t num_decodes = 0;  // sequences that the decode kernel takes
  std::uint32_t num_tiles = 0;    // of the prefill kernel

  auto operator<=>(const StepCounts&) const = default;
};

// One contiguous range, at the same offsets on the host and on the device. Equal counts give equal
// places, so a recorded graph finds them.
struct StepArrays {
  std::uint32_t* token_ids = nullptr;         // [T]
  std::uint32_t* feed_seats = nullptr;        // [T]
  std::uint32_t* positions = nullptr;         // [T]
  std::uint32_t* slot_mapping = nullptr;      // [T]
  std::uint32_t* cu_query_lens = nullptr;     // [S + 1]
  std::uint32_t* context_lens = nullptr;      // [S]
  std::uint32_t* decode_seqs = nullptr;       // [num_decodes]
  ops::cuda::AttentionTile* tiles = nullptr;  // [num_tiles]
  std::uint32_t* last_tokens = nullptr;       // [R] the token whose logits are wanted
  std::uint32_t* seats = nullptr;             // [R]
  ops::SampleParams* params = nullptr;        // [R]
  ops::LogitRules* rules = nullptr;           // [R]
  ops::RowLogprobs* logprobs = nullptr;       // [R]

  // Places them from `base` on and answers the bytes; with a null base only that.
  static std::uint64_t place(const StepCounts& counts, std::byte* base, StepArrays& arrays);
};

// The same for the tokens whose next token is scored.
struct ScoredArrays {
  std::uint32_t* tokens = nullptr;       // [N] index in the step
  ops::Sampled* targets = nullptr;       // [N]
  ops::RowLogprobs* logprobs = nullptr;  // [N]

  static std::uint64_t place(std::uint32_t count, std::byte* base, ScoredArrays& arrays);
};

// What comes back of a step.
struct AnswerArrays {
  ops::Sampled* sampled = nullptr;        // [R]
  ops::RowScore* scores = nullptr;        // [R] where log probabilities are wanted
  ops::TokenLogit* top = nullptr;         // [R, kMaxTop]
  ops::RowScore* token_scores = nullptr;  // [T] of scored tokens
  ops::TokenLogit* token_top = nullptr;   // [T, kMaxTop]

  static std::uint64_t place(const StepCounts& most, std::byte* base, AnswerArrays& arrays);
};

// What decides the form of a step's arrays.
struct StepForm {
  std::uint32_t block_size = 0;
  std::uint32_t tile_rows = 0;  // query tokens of an attention tile
  bool only_tiles = false;      // no decode kernel: same bits in any batch

  std::uint32_t num_tiles(std::uint32_t query_len) const {
    return (query_len + tile_rows - 1) / tile_rows;
  }
};

// Of a batch without padding.
StepCounts count(const StepBatch& batch, const StepForm& form);

// When the steps of a device began and ended, by its own clock. Of all its models: the stream runs
// them one after the other. Two may be under way, a third while a model warms up, and the one
// before them says how long the device was idle.
class StepClock {
 public:
  // Of the step that is put into the stream from here on; answers its number, which is good until
  // so many more have begun.
  static constexpr std::uint64_t kKept = 4;
  std::uint64_t begin(cudaStream_t stream);
  void end(std::uint64_t step, cudaStream_t stream);

  bool has_ended(std::uint64_t step) { return of(step).ended.has_ended(); }
  void wait(std::uint64_t step) { of(step).ended.wait(); }

  // Of a step that has ended.
  float device_ms(std::uint64_t step) { return of(step).ended.since(of(step).began); }
  // From the end of the step before; 0 where that is not known.
  float idle_ms(std::uint64_t step);

 private:
  struct Times {
    CudaEvent began;
    CudaEvent ended;
    std::uint64_t ended_step = 0;
  };
  Times& of(std::uint64_t step) { return times_[step % kKept]; }

  std::array<Times, kKept> times_;
  std::uint64_t num_begun_ = 0;  // steps count from 1
};

// The page-locked side of one step in flight.
class StepSlot {
 public:
  // For steps up to these counts, with tables of block_table_stride blocks.
  StepSlot(const StepCounts& most, std::uint32_t block_table_stride, std::uint32_t vocab_size);

  // Padded to these counts. `seats` [max_batch_size].
  void fill(const StepBatch& batch, const StepForm& form, const StepCounts& counts,
            std::span<const ops::SeatSampler> seats);

  const StepCounts& counts() const { return counts_; }
  const std::byte* staged() const { return staging_.data(); }
  std::uint64_t staged_bytes() const { return staged_bytes_; }
  const std::uint32_t* block_tables() const {
    return reinterpret_cast<const std::uint32_t*>(tables_.data());
  }
  const std::byte* masks() const { return masks_.data(); }  // [num_masks, mask_words]
  // ScoredArrays of num_scored tokens.
  const std::byte* scored() const { return scored_.data(); }
  std::uint64_t scored_bytes() const { return scored_bytes_; }
  std::uint32_t num_scored() const { return static_cast<std::uint32_t>(scored_rows_.size()); }

  // Of the batch itself, without padding.
  std::uint32_t num_seqs = 0;
  std::uint32_t block_table_stride = 0;
  std::vector<std::uint32_t> row_seqs;  // [real rows] the sequence of each row
  bool any_random = false;
  bool any_filter = false;
  bool any_rules = false;  // on logits
  bool any_state = false;  // of a seat changes
  bool any_logprobs = false;
  std::uint32_t num_masks = 0;
  bool want_logits = false;
  std::uint64_t step = 0;  // its number in the device's clock

  // The answer comes here.
  const AnswerArrays& answer() const { return answer_arrays_; }
  std::vector<float> logits;
  // Once it has come.
  void put_answer(StepAnswer& answer) const;

 private:
  void fill_tokens(const StepBatch& batch, const StepArrays& arrays);
  void fill_seqs(const StepBatch& batch, const StepForm& form, const StepArrays& arrays);
  void fill_rows(const StepBatch& batch, const StepArrays& arrays,
                 std::span<const ops::SeatSampler> seats);
  void fill_scored(const StepBatch& batch, std::span<const ops::SeatSampler> seats);

  struct ScoredRow {
    std::uint32_t seq = 0;
    std::uint32_t num_top = 0;
  };

  std::size_t mask_words_;
  StepCounts counts_;
  std::uint64_t staged_bytes_ = 0;
  std::uint64_t scored_bytes_ = 0;
  std::vector<bool> row_logprobs_;      // [real rows] whether they are wanted
  std::vector<ScoredRow> scored_rows_;  // [N]
  AnswerArrays answer_arrays_;
  PinnedBuffer staging_;
  PinnedBuffer tables_;
  PinnedBuffer masks_;
  PinnedBuffer scored_;
  PinnedBuffer answer_;
};

}  // namespace inferno::engine
