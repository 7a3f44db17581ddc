#include "engine/batch.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/error.h"

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
  check_size("positions", batch.positions.size(), num_tokens);
  check_size("slot_mapping", batch.slot_mapping.size(), num_tokens);
  check_size("cu_query_lens", batch.cu_query_lens.size(), num_seqs + 1);
  check_size("context_lens", batch.context_lens.size(), num_seqs);
  check_size("block_tables", batch.block_tables.size(), num_seqs * batch.block_table_stride);
  check_size("feed_sampled", batch.feed_sampled.size(), num_seqs);
  check_size("sample", batch.sample.size(), num_seqs);
  check_size("sampling", batch.sampling.size(), num_seqs);
}

void check_sampling(const ops::SampleParams& params, std::size_t seq) {
  const auto require = [&](bool good, const char* field, float value) {
    if (!good) refuse(at("sampling", seq) + "." + field + ": got " + std::to_string(value));
  };
  require(std::isfinite(params.temperature) && params.temperature >= 0, "temperature",
          params.temperature);
  require(params.top_p > 0 && params.top_p <= 1, "top_p", params.top_p);
  require(params.min_p >= 0 && params.min_p <= 1, "min_p", params.min_p);
}

// The sequence's lengths, seat and blocks.
void check_sequence(const StepBatch& batch, const BatchBounds& bounds, std::uint32_t seq) {
  const std::uint64_t context_len = batch.context_lens[seq];
  check_below("context_lens", seq, context_len, std::uint64_t{bounds.max_seq_len} + 1);
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
  if (batch.sample[seq]) check_sampling(batch.sampling[seq], seq);
}

// The query tokens are the last ones of the context, and their slots are those of the block table.
void check_tokens(const StepBatch& batch, const BatchBounds& bounds, std::uint32_t seq) {
  const std::uint32_t begin = batch.cu_query_lens[seq];
  const std::uint32_t query_len = batch.query_len(seq);
  const std::uint32_t context_len = batch.context_lens[seq];
  const std::size_t table = std::size_t{seq} * batch.block_table_stride;
  for (std::uint32_t i = 0; i < query_len; ++i) {
    const std::uint32_t token = begin + i;
    const std::uint32_t position = context_len - query_len + i;
    if (batch.positions[token] != position) {
      refuse(at("positions", token) + ": expected " + std::to_string(position) +
             " (from context_lens and cu_query_lens), got " +
             std::to_string(batch.positions[token]));
    }
    const std::uint64_t block = batch.block_tables[table + position / bounds.block_size];
    const std::uint64_t slot = block * bounds.block_size + position % bounds.block_size;
    if (batch.slot_mapping[token] != slot) {
      refuse(at("slot_mapping", token) + ": expected " + std::to_string(slot) +
             " (from block_tables), got " + std::to_string(batch.slot_mapping[token]));
    }
    if (!batch.feed_sampled[seq]) {
      check_below("token_ids", token, batch.token_ids[token], bounds.vocab_size);
    }
  }
}

}  // namespace

void check_batch(const StepBatch& batch, const BatchBounds& bounds,
                 std::span<const bool> seat_filled, std::span<bool> seat_seen) {
  check_sizes(batch, bounds);
  const std::uint32_t num_seqs = batch.num_seqs();
  if (batch.cu_query_lens[0] != 0 || batch.cu_query_lens[num_seqs] != batch.num_tokens()) {
    refuse("cu_query_lens: expected to run from 0 to " + std::to_string(batch.num_tokens()) +
           ", got " + std::to_string(batch.cu_query_lens[0]) + " to " +
           std::to_string(batch.cu_query_lens[num_seqs]));
  }
  for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
    if (batch.cu_query_lens[seq] >= batch.cu_query_lens[seq + 1]) {
      refuse(at("cu_query_lens", seq + 1) + ": expected more than the one before it");
    }
  }
  std::fill(seat_seen.begin(), seat_seen.end(), false);
  for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
    const std::uint32_t seat = batch.seats[seq];
    check_below("seats", seq, seat, bounds.max_batch_size);
    if (seat_seen[seat]) refuse(at("seats", seq) + ": " + std::to_string(seat) + " is given twice");
    seat_seen[seat] = true;
    check_sequence(batch, bounds, seq);
    const std::uint32_t query_len = batch.query_len(seq);
    if (query_len > batch.context_lens[seq]) {
      refuse(at("context_lens", seq) + ": expected at least the " + std::to_string(query_len) +
             " query tokens, got " + std::to_string(batch.context_lens[seq]));
    }
    if (batch.feed_sampled[seq] && query_len != 1) {
      refuse(at("feed_sampled", seq) + ": expected one query token, got " +
             std::to_string(query_len));
    }
    if (batch.feed_sampled[seq] && !seat_filled[seat]) {
      refuse(at("feed_sampled", seq) + ": nothing was sampled for seat " + std::to_string(seat));
    }
    check_tokens(batch, bounds, seq);
  }
}

void throw_not_sampled(std::uint32_t seq, ops::SampleStatus status) {
  const bool not_a_number = status == ops::SampleStatus::kNotANumber;
  throw Error(ErrorCode::kOther, "sequence " + std::to_string(seq) +
                                     (not_a_number ? ": logits that are no numbers"
                                                   : ": no token is left to be sampled"));
}

}  // namespace inferno::engine
