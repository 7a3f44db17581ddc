#include "engine/cuda/cuda_step.h"

#include <algorithm>

#include "engine/layout.h"
#include "ops/embed/embed_cuda.h"
#include "ops/rope/rope_kv_cuda.h"

namespace inferno::engine {
namespace {

using ops::cuda::kNoSeat;
using ops::cuda::kNoSlot;

std::uint64_t bytes_of(const StepCounts& counts) {
  StepArrays arrays;
  return StepArrays::place(counts, nullptr, arrays);
}

bool filters(const ops::SampleParams& params) {
  return params.temperature > 0 && (params.top_k != 0 || params.top_p < 1 || params.min_p > 0);
}

}  // namespace

std::uint64_t StepArrays::place(const StepCounts& counts, std::byte* base, StepArrays& arrays) {
  Layout layout;
  const auto place = [&](auto*& array, std::uint64_t length) {
    const std::uint64_t offset = layout.place(length * sizeof(*array));
    if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + offset);
  };
  place(arrays.token_ids, counts.num_tokens);
  place(arrays.feed_seats, counts.num_tokens);
  place(arrays.positions, counts.num_tokens);
  place(arrays.slot_mapping, counts.num_tokens);
  place(arrays.cu_query_lens, std::uint64_t{counts.num_seqs} + 1);
  place(arrays.context_lens, counts.num_seqs);
  place(arrays.decode_seqs, counts.num_decodes);
  place(arrays.tiles, counts.num_tiles);
  place(arrays.last_tokens, counts.num_rows);
  place(arrays.seats, counts.num_rows);
  place(arrays.params, counts.num_rows);
  return layout.bytes();
}

std::uint64_t StepClock::begin(cudaStream_t stream) {
  of(++num_begun_).began.record(stream);
  return num_begun_;
}

void StepClock::end(std::uint64_t step, cudaStream_t stream) {
  of(step).ended.record(stream);
  of(step).ended_step = step;
}

float StepClock::idle_ms(std::uint64_t step) {
  Times& before = of(step - 1);
  const bool is_known = step > 1 && before.ended_step == step - 1;
  return is_known ? of(step).began.since(before.ended) : 0;
}

StepCounts count(const StepBatch& batch, const StepForm& form) {
  StepCounts counts{batch.num_tokens(), batch.num_seqs(), 0, 0, 0};
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    const std::uint32_t length = batch.query_len(seq);
    if (length == 1 && !form.only_tiles) {
      counts.num_decodes += 1;
    } else {
      counts.num_tiles += form.num_tiles(length);
    }
    counts.num_rows += batch.sample[seq] ? 1 : 0;
  }
  return counts;
}

StepSlot::StepSlot(const StepCounts& most, std::uint32_t stride)
    : staging_(bytes_of(most)),
      tables_(std::uint64_t{most.num_seqs} * stride * sizeof(std::uint32_t)),
      answer_(most.num_rows * sizeof(ops::Sampled)) {
  row_seqs.reserve(most.num_rows);
}

void StepSlot::fill(const StepBatch& batch, const StepForm& form, const StepCounts& counts) {
  counts_ = counts;
  StepArrays arrays;
  staged_bytes_ = StepArrays::place(counts_, staging_.data(), arrays);
  fill_tokens(batch, arrays);
  fill_seqs(batch, form, arrays);
  fill_rows(batch, arrays);
  num_seqs = batch.num_seqs();
  block_table_stride = batch.block_table_stride;
  std::copy(batch.block_tables.begin(), batch.block_tables.end(),
            reinterpret_cast<std::uint32_t*>(tables_.data()));
  want_logits = batch.want_logits;
}

void StepSlot::fill_tokens(const StepBatch& batch, const StepArrays& arrays) {
  const std::uint32_t num_tokens = batch.num_tokens();
  const std::uint32_t padding = counts_.num_tokens - num_tokens;
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), arrays.token_ids);
  std::copy(batch.positions.begin(), batch.positions.end(), arrays.positions);
  std::copy(batch.slot_mapping.begin(), batch.slot_mapping.end(), arrays.slot_mapping);
  std::fill_n(arrays.feed_seats, counts_.num_tokens, kNoSeat);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (batch.feed_sampled[seq]) arrays.feed_seats[batch.cu_query_lens[seq]] = batch.seats[seq];
  }
  std::fill_n(arrays.token_ids + num_tokens, padding, 0);
  std::fill_n(arrays.positions + num_tokens, padding, 0);
  std::fill_n(arrays.slot_mapping + num_tokens, padding, kNoSlot);
}

// Padding are sequences of one token and no context; tokens of no sequence after a prompt.
void StepSlot::fill_seqs(const StepBatch& batch, const StepForm& form, const StepArrays& arrays) {
  std::copy(batch.cu_query_lens.begin(), batch.cu_query_lens.end(), arrays.cu_query_lens);
  std::copy(batch.context_lens.begin(), batch.context_lens.end(), arrays.context_lens);
  for (std::uint32_t seq = batch.num_seqs(); seq < counts_.num_seqs; ++seq) {
    arrays.cu_query_lens[seq + 1] = arrays.cu_query_lens[seq] + 1;
    arrays.context_lens[seq] = 0;
  }
  std::uint32_t decodes = 0;
  std::uint32_t tiles = 0;
  for (std::uint32_t seq = 0; seq < counts_.num_seqs; ++seq) {
    const std::uint32_t length = arrays.cu_query_lens[seq + 1] - arrays.cu_query_lens[seq];
    if (length == 1 && !form.only_tiles) {
      arrays.decode_seqs[decodes++] = seq;
      continue;
    }
    for (std::uint32_t first = 0; first < length; first += form.tile_rows) {
      arrays.tiles[tiles++] = {seq, first};
    }
  }
  // A tile reads the positions up to its last row's.
  const auto end_of = [&](const ops::cuda::AttentionTile& tile) {
    const std::uint32_t length =
        arrays.cu_query_lens[tile.seq + 1] - arrays.cu_query_lens[tile.seq];
    return arrays.context_lens[tile.seq] -
           (length - std::min(length, tile.first_query + form.tile_rows));
  };
  std::stable_sort(arrays.tiles, arrays.tiles + tiles,
                   [&](const auto& a, const auto& b) { return end_of(a) > end_of(b); });
}

void StepSlot::fill_rows(const StepBatch& batch, const StepArrays& arrays) {
  row_seqs.clear();
  any_random = false;
  any_filter = false;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.sample[seq]) continue;
    const std::size_t row = row_seqs.size();
    const ops::SampleParams& params = batch.sampling[seq];
    arrays.last_tokens[row] = batch.cu_query_lens[seq + 1] - 1;
    arrays.seats[row] = batch.seats[seq];
    arrays.params[row] = params;
    any_random = any_random || params.temperature > 0;
    any_filter = any_filter || filters(params);
    row_seqs.push_back(seq);
  }
  for (auto row = static_cast<std::uint32_t>(row_seqs.size()); row < counts_.num_rows; ++row) {
    arrays.last_tokens[row] = row;
    arrays.seats[row] = kNoSeat;
    arrays.params[row] = {};
  }
}

}  // namespace inferno::engine
