// One step as the engine sees it: what the border sends as views, what it must satisfy, what
// follows from it, and what a step gives back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/process_logits/process_logits.h"
#include "ops/score/score.h"

namespace inferno::engine {

// T tokens of S sequences, those of one sequence adjacent and in order. The query tokens are the
// last ones of their context.
struct StepBatch {
  std::span<const std::uint32_t> token_ids{};     // [T]; not read where feed_sampled holds
  std::span<const std::uint32_t> query_lens{};    // [S] tokens computed in this step
  std::span<const std::uint32_t> context_lens{};  // [S] tokens whose KV exists after the step
  std::span<const std::uint32_t> block_tables{};  // [S, block_table_stride] block ids
  std::uint32_t block_table_stride = 0;
  std::span<const std::uint32_t> seats{};  // [S] below max_batch_size
  std::span<const bool> feed_sampled{};  // [S] the only query token is the seat's last sampled one
  std::span<const bool> sample{};        // [S] after the last query token
  std::span<const bool> score{};  // [S] log probabilities of the tokens after these are wanted
  // [S] the token after the last query token, or kNoToken: none to be scored there
  std::span<const std::uint32_t> next_token_ids{};
  std::span<const std::uint32_t> masks{};  // [M, mask_words(vocab_size)] ids that may be sampled
  std::span<const std::uint32_t> mask_rows{};  // [S] below M, or kNoMaskRow
  bool want_logits = false;

  std::uint32_t num_tokens() const { return static_cast<std::uint32_t>(token_ids.size()); }
  std::uint32_t num_seqs() const { return static_cast<std::uint32_t>(seats.size()); }
  // Query tokens whose next token is scored.
  std::uint32_t num_scored(std::uint32_t seq) const {
    if (!score[seq]) return 0;
    return query_lens[seq] - (next_token_ids[seq] == ops::kNoToken ? 1 : 0);
  }
};

// A query token whose next token, `target`, is scored.
struct ScoredToken {
  std::uint32_t token = 0;  // its index in the step
  std::uint32_t seq = 0;
  std::uint32_t target = 0;
};

// Calls fn(const ScoredToken&) for each of a checked batch, in order.
template <typename Fn>
void for_each_scored(const StepBatch& batch, Fn fn) {
  std::uint32_t begin = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    const std::uint32_t end = begin + batch.query_lens[seq];
    for (std::uint32_t i = begin; i < begin + batch.num_scored(seq); ++i) {
      fn(ScoredToken{i, seq, i + 1 < end ? batch.token_ids[i + 1] : batch.next_token_ids[seq]});
    }
    begin = end;
  }
}

// What follows from a checked batch; the caller's arrays.
struct DerivedArrays {
  std::uint32_t* positions = nullptr;      // [T] 0-based
  std::uint32_t* slot_mapping = nullptr;   // [T] block_id * block_size + offset
  std::uint32_t* cu_query_lens = nullptr;  // [S + 1] running sum of query lengths
};
void derive_arrays(const StepBatch& batch, std::uint32_t block_size, const DerivedArrays& out);

// What became of a sequence's row.
enum class RowStatus : std::uint8_t {
  kNone,  // it did not sample
  kSampled,
  kNotANumber,  // a logit is NaN or +infinity
  kNothingLeft  // rules, or the model, leave no token
};

// What a step gives back: views of the engine's memory, good until the next call.
struct StepOutput {
  std::span<const std::uint32_t> token_ids{};  // [S]; 0 where nothing was sampled
  std::span<const RowStatus> statuses{};       // [S]
  std::span<const float> logprobs{};           // [S] of the sampled token, where its seat wants it
  // Alternatives of row s, likeliest first: from top_starts[s] to top_starts[s + 1].
  std::span<const std::uint32_t> top_starts{};  // [S + 1]
  std::span<const std::uint32_t> top_ids{};
  std::span<const float> top_logprobs{};
  // Scored tokens of sequence s: from score_starts[s] to score_starts[s + 1]. Each has as many
  // alternatives as its seat wants; kNoToken and -infinity where the model has fewer.
  std::span<const std::uint32_t> score_starts{};  // [S + 1]
  std::span<const float> score_logprobs{};
  std::span<const std::uint32_t> score_top_ids{};
  std::span<const float> score_top_logprobs{};
  std::span<const float> logits{};  // [rows with sample, vocab_size] the model's, if wanted
  // Of a GPU, by its own clock: how long the step took, and how long the device had had nothing to
  // do before it, since the step before (0 for the first). 0 on a CPU.
  float device_ms = 0;
  float idle_ms = 0;
};

// The numbers that a batch's indices stay below.
struct BatchBounds {
  std::uint32_t vocab_size = 0;
  std::uint32_t block_size = 0;
  std::uint32_t num_blocks = 0;
  std::uint32_t max_batch_size = 0;
  std::uint32_t max_step_tokens = 0;
  std::uint32_t max_seq_len = 0;
};

// What a seat holds between steps.
enum class SeatState : std::uint8_t {
  kFree,
  kBound,  // a sampler
  kFilled  // and a sampled token
};

// Throws `invalid_batch: …` naming the array, the place and the value. After it no index of the
// batch leads outside the model's memory. Reads only what the lengths, checked first, say is there.
// Takes no memory. `seats` [max_batch_size]. `seat_seen` [max_batch_size]: scratch.
void check_batch(const StepBatch& batch, const BatchBounds& bounds,
                 std::span<const SeatState> seats, std::span<bool> seat_seen);

}  // namespace inferno::engine
