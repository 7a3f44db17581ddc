#include "engine/batch.h"

#include <algorithm>
#include <string>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorCode::kInvalidBatch, what); }

std::string at(const char* array, std::size_t index) {
  return std::string(array) + "[" + std::to_string(index) + "]";
}

void check_size(const char* array, std::size_t got, std::size_t expected) {
  if (got == expected) return;
  refuse(std::string(array) + ": expected " + std::to_string(expected) + " values, got " +
         std::to_string(got));
}

void check_below(const char* array, std::size_t index, std::uint64_t value, std::uint64_t bound) {
  if (value < bound) return;
  refuse(at(array, index) + ": expected less than " + std::to_string(bound) + ", got " +
         std::to_string(value));
}

void check_sizes(const StepBatch& batch, const BatchBounds& bounds) {
  const std::size_t num_tokens = batch.token_ids.size();
  const std::size_t num_seqs = batch.seats.size();
  if (num_tokens == 0 || num_seqs == 0) refuse("token_ids, seats: expected at least one");
  if (num_tokens > bounds.max_step_tokens) {
    refuse("token_ids: expected at most max_step_tokens = " +
           std::to_string(bounds.max_step_tokens) + ", got " + std::to_string(num_tokens));
  }
  if (num_seqs > bounds.max_batch_size) {
    refuse("seats: expected at most max_batch_size = " + std::to_string(bounds.max_batch_size) +
           ", got " + std::to_string(num_seqs));
  }
  const std::uint32_t most_blocks =
      (bounds.max_seq_len + bounds.block_size - 1) / bounds.block_size;
  if (batch.block_table_stride > most_blocks) {
    refuse("block_table_stride: expected at most the " + std::to_string(most_blocks) +
           " blocks of max_seq_len, got " + std::to_string(batch.block_table_stride));
  }
  check_size("query_lens", batch.query_lens.size(), num_seqs);
  check_size("context_lens", batch.context_lens.size(), num_seqs);
  check_size("block_tables", batch.block_tables.size(), num_seqs * batch.block_table_stride);
  check_size("feed_sampled", batch.feed_sampled.size(), num_seqs);
  check_size("sample", batch.sample.size(), num_seqs);
  check_size("score", batch.score.size(), num_seqs);
  check_size("next_token_ids", batch.next_token_ids.size(), num_seqs);
  check_size("mask_rows", batch.mask_rows.size(), num_seqs);
  const std::size_t words = ops::mask_words(bounds.vocab_size);
  const std::size_t num_masks = batch.masks.size() / words;
  check_size("masks", batch.masks.size(), num_masks * words);
  if (num_masks > num_seqs) {
    refuse("masks: expected at most one for each sequence, got " + std::to_string(num_masks));
  }
}

// Every sequence has a query, and together they have the tokens.
void check_query_lens(const StepBatch& batch) {
  std::uint64_t sum = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (batch.query_lens[seq] == 0) refuse(at("query_lens", seq) + ": expected at least 1, got 0");
    sum += batch.query_lens[seq];
  }
  if (sum != batch.num_tokens()) {
    refuse("query_lens: expected a sum of " + std::to_string(batch.num_tokens()) + ", got " +
           std::to_string(sum));
  }
}

// The sequence's lengths and blocks.
void check_context(const StepBatch& batch, const BatchBounds& bounds, std::uint32_t seq) {
  const std::uint64_t context_len = batch.context_lens[seq];
  check_below("context_lens", seq, context_len, std::uint64_t{bounds.max_seq_len} + 1);
  if (batch.query_lens[seq] > context_len) {
    refuse(at("context_lens", seq) + ": expected at least the " +
           std::to_string(batch.query_lens[seq]) + " query tokens, got " +
           std::to_string(context_len));
  }
  const std::uint64_t num_blocks = (context_len + bounds.block_size - 1) / bounds.block_size;
  if (num_blocks > batch.block_table_stride) {
    refuse("block_table_stride: " + at("context_lens", seq) + " needs " +
           std::to_string(num_blocks) + ", got " + std::to_string(batch.block_table_stride));
  }
  const std::size_t first = std::size_t{seq} * batch.block_table_stride;
  for (std::size_t block = 0; block < num_blocks; ++block) {
    check_below("block_tables", first + block, batch.block_tables[first + block],
                bounds.num_blocks);
  }
}

void check_seat(const StepBatch& batch, std::span<const SeatState> seats, std::uint32_t seq) {
  const std::uint32_t seat = batch.seats[seq];
  const auto name = [&] { return std::to_string(seat); };
  if ((batch.sample[seq] || batch.score[seq]) && seats[seat] == SeatState::kFree) {
    refuse(at("seats", seq) + ": nothing is bound to seat " + name());
  }
  if (!batch.feed_sampled[seq]) return;
  if (batch.query_lens[seq] != 1) {
    refuse(at("feed_sampled", seq) + ": expected one query token, got " +
           std::to_string(batch.query_lens[seq]));
  }
  if (seats[seat] != SeatState::kFilled) {
    refuse(at("feed_sampled", seq) + ": nothing was sampled for seat " + name());
  }
  if (batch.score[seq]) refuse(at("score", seq) + ": a fed token is no part of a prompt");
}

void check_rows(const StepBatch& batch, const BatchBounds& bounds, std::uint32_t seq) {
  const std::uint32_t next = batch.next_token_ids[seq];
  if (batch.score[seq] && next != ops::kNoToken) {
    check_below("next_token_ids", seq, next, bounds.vocab_size);
  }
  const std::uint32_t mask_row = batch.mask_rows[seq];
  if (mask_row != ops::kNoMaskRow) {
    check_below("mask_rows", seq, mask_row,
                batch.masks.size() / ops::mask_words(bounds.vocab_size));
  }
}

}  // namespace

void derive_arrays(const StepBatch& batch, std::uint32_t block_size, const DerivedArrays& out) {
  std::uint32_t token = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    out.cu_query_lens[seq] = token;
    const std::uint32_t* table =
        batch.block_tables.data() + std::size_t{seq} * batch.block_table_stride;
    const std::uint32_t end = batch.context_lens[seq];
    for (std::uint32_t position = end - batch.query_lens[seq]; position < end; ++position) {
      out.positions[token] = position;
      out.slot_mapping[token] = table[position / block_size] * block_size + position % block_size;
      ++token;
    }
  }
  out.cu_query_lens[batch.num_seqs()] = token;
}

void check_batch(const StepBatch& batch, const BatchBounds& bounds,
                 std::span<const SeatState> seats, std::span<bool> seat_seen) {
  check_sizes(batch, bounds);
  check_query_lens(batch);
  std::fill(seat_seen.begin(), seat_seen.end(), false);
  std::size_t token = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    const std::uint32_t seat = batch.seats[seq];
    check_below("seats", seq, seat, bounds.max_batch_size);
    if (seat_seen[seat]) refuse(at("seats", seq) + ": " + std::to_string(seat) + " is given twice");
    seat_seen[seat] = true;
    check_context(batch, bounds, seq);
    check_seat(batch, seats, seq);
    check_rows(batch, bounds, seq);
    for (std::uint32_t i = 0; i < batch.query_lens[seq]; ++i, ++token) {
      if (batch.feed_sampled[seq]) continue;
      check_below("token_ids", token, batch.token_ids[token], bounds.vocab_size);
    }
  }
}

}  // namespace inferno::engine
