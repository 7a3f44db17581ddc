// One step as the engine sees it: the border's flat arrays as views, and what they must satisfy.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/sample/sample.h"

namespace inferno::engine {

// T tokens of S sequences, those of one sequence adjacent and in order.
struct StepBatch {
  std::span<const std::uint32_t> token_ids;      // [T]; not read where feed_sampled holds
  std::span<const std::uint32_t> positions;      // [T] 0-based
  std::span<const std::uint32_t> slot_mapping;   // [T] block_id * block_size + offset
  std::span<const std::uint32_t> cu_query_lens;  // [S + 1] running sum of query lengths
  std::span<const std::uint32_t> context_lens;   // [S] tokens whose KV exists after the step
  std::span<const std::uint32_t> block_tables;   // [S, block_table_stride] block ids
  std::uint32_t block_table_stride = 0;
  std::span<const std::uint32_t> seats;  // [S] below max_batch_size
  std::span<const bool> feed_sampled;    // [S] the only query token is the seat's last sampled one
  std::span<const bool> sample;          // [S]
  std::span<const ops::SampleParams> sampling;  // [S] read where sample holds
  bool want_logits = false;

  std::uint32_t num_tokens() const { return static_cast<std::uint32_t>(token_ids.size()); }
  std::uint32_t num_seqs() const { return static_cast<std::uint32_t>(seats.size()); }
  std::uint32_t query_len(std::uint32_t seq) const {
    return cu_query_lens[seq + 1] - cu_query_lens[seq];
  }
};

// What a step gives back: views of the engine's memory, good until the next call.
struct StepOutput {
  std::span<const std::uint32_t> token_ids;  // [S]; 0 where sample was false
  std::span<const float> logits;             // [rows with sample, vocab_size] if wanted, else empty
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

// Throws `invalid_batch: …` naming the array, the place and the value. After it no index of the
// batch leads outside the model's memory. Reads only what the lengths, checked first, say is there.
// Takes no memory. `seat_filled` [max_batch_size]: seats that hold a sampled token. `seat_seen`
// [max_batch_size]: scratch.
void check_batch(const StepBatch& batch, const BatchBounds& bounds,
                 std::span<const bool> seat_filled, std::span<bool> seat_seen);

// Throws other for a row that could not be sampled.
[[noreturn]] void throw_not_sampled(std::uint32_t seq, ops::SampleStatus status);

}  // namespace inferno::engine
