#include "engine/cuda/cuda_step.h"

#include <algorithm>

#include "engine/base/layout.h"
#include "ops/embed/embed_cuda.h"
#include "ops/rope/rope_kv_cuda.h"

namespace inferno::engine {
namespace {

using ops::cuda::kNoSeat;
using ops::cuda::kNoSlot;

template <typename Arrays, typename Count>
std::uint64_t bytes_of(const Count& count) {
  Arrays arrays;
  return Arrays::place(count, nullptr, arrays);
}

// Places arrays one after the other from `base` on; with a null base only their bytes are known.
class Placer {
 public:
  explicit Placer(std::byte* base) : base_(base) {}
  template <typename T>
  void operator()(T*& array, std::uint64_t length) {
    const std::uint64_t offset = layout_.place(length * sizeof(T));
    if (base_ != nullptr) array = reinterpret_cast<T*>(base_ + offset);
  }
  std::uint64_t bytes() const { return layout_.bytes(); }

 private:
  std::byte* base_;
  Layout layout_;
};

bool filters(const ops::SampleParams& params) {
  return params.temperature > 0 && (params.top_k != 0 || params.top_p < 1 || params.min_p > 0);
}

}  // namespace

std::uint64_t StepArrays::place(const StepCounts& counts, std::byte* base, StepArrays& arrays) {
  Placer place(base);
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
  place(arrays.rules, counts.num_rows);
  place(arrays.logprobs, counts.num_rows);
  return place.bytes();
}

std::uint64_t ScoredArrays::place(std::uint32_t count, std::byte* base, ScoredArrays& arrays) {
  Placer place(base);
  place(arrays.tokens, count);
  place(arrays.targets, count);
  place(arrays.logprobs, count);
  return place.bytes();
}

std::uint64_t AnswerArrays::place(const StepCounts& most, std::byte* base, AnswerArrays& arrays) {
  Placer place(base);
  place(arrays.sampled, most.num_rows);
  place(arrays.scores, most.num_rows);
  place(arrays.top, std::uint64_t{most.num_rows} * ops::kMaxTop);
  place(arrays.token_scores, most.num_tokens);
  place(arrays.token_top, std::uint64_t{most.num_tokens} * ops::kMaxTop);
  return place.bytes();
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
    const std::uint32_t length = batch.query_lens[seq];
    if (length == 1 && !form.only_tiles) {
      counts.num_decodes += 1;
    } else {
      counts.num_tiles += form.num_tiles(length);
    }
    counts.num_rows += batch.sample[seq] ? 1 : 0;
  }
  return counts;
}

StepSlot::StepSlot(const StepCounts& most, std::uint32_t stride, std::uint32_t vocab_size)
    : mask_words_(ops::mask_words(vocab_size)),
      staging_(bytes_of<StepArrays>(most)),
      tables_(std::uint64_t{most.num_seqs} * stride * sizeof(std::uint32_t)),
      masks_(most.num_rows * mask_words_ * sizeof(std::uint32_t)),
      scored_(bytes_of<ScoredArrays>(most.num_tokens)),
      answer_(bytes_of<AnswerArrays>(most)) {
  AnswerArrays::place(most, answer_.data(), answer_arrays_);
  row_seqs.reserve(most.num_rows);
  row_logprobs_.reserve(most.num_rows);
  scored_rows_.reserve(most.num_tokens);
}

void StepSlot::fill(const StepBatch& batch, const StepForm& form, const StepCounts& counts,
                    std::span<const ops::SeatSampler> seats) {
  counts_ = counts;
  StepArrays arrays;
  staged_bytes_ = StepArrays::place(counts_, staging_.data(), arrays);
  derive_arrays(batch, form.block_size,
                {arrays.positions, arrays.slot_mapping, arrays.cu_query_lens});
  fill_tokens(batch, arrays);
  fill_seqs(batch, form, arrays);
  fill_rows(batch, arrays, seats);
  fill_scored(batch, seats);
  num_seqs = batch.num_seqs();
  block_table_stride = batch.block_table_stride;
  std::copy(batch.block_tables.begin(), batch.block_tables.end(),
            reinterpret_cast<std::uint32_t*>(tables_.data()));
  num_masks = static_cast<std::uint32_t>(batch.masks.size() / mask_words_);
  std::copy(batch.masks.begin(), batch.masks.end(),
            reinterpret_cast<std::uint32_t*>(masks_.data()));
  want_logits = batch.want_logits;
}

void StepSlot::fill_tokens(const StepBatch& batch, const StepArrays& arrays) {
  const std::uint32_t num_tokens = batch.num_tokens();
  const std::uint32_t padding = counts_.num_tokens - num_tokens;
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), arrays.token_ids);
  std::fill_n(arrays.feed_seats, counts_.num_tokens, kNoSeat);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (batch.feed_sampled[seq]) arrays.feed_seats[arrays.cu_query_lens[seq]] = batch.seats[seq];
  }
  std::fill_n(arrays.token_ids + num_tokens, padding, 0);
  std::fill_n(arrays.positions + num_tokens, padding, 0);
  std::fill_n(arrays.slot_mapping + num_tokens, padding, kNoSlot);
}

// Padding are sequences of one token and no context; tokens of no sequence after a prompt.
void StepSlot::fill_seqs(const StepBatch& batch, const StepForm& form, const StepArrays& arrays) {
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

void StepSlot::fill_rows(const StepBatch& batch, const StepArrays& arrays,
                         std::span<const ops::SeatSampler> seats) {
  row_seqs.clear();
  row_logprobs_.clear();
  any_random = any_filter = any_rules = any_state = any_logprobs = false;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.sample[seq]) continue;
    const std::size_t row = row_seqs.size();
    const ops::SeatSampler& seat = seats[batch.seats[seq]];
    const std::uint32_t position = batch.context_lens[seq];
    const ops::SampleParams& params = arrays.params[row] = seat.params_at(position);
    const ops::LogitRules& rules = arrays.rules[row] =
        seat.rules_at(position, batch.mask_rows[seq]);
    arrays.last_tokens[row] = arrays.cu_query_lens[seq + 1] - 1;
    arrays.seats[row] = batch.seats[seq];
    arrays.logprobs[row] = seat.logprobs;
    any_random = any_random || params.temperature > 0;
    any_filter = any_filter || filters(params);
    any_rules = any_rules || rules.change_logits();
    any_state = any_state || rules.change_state();
    any_logprobs = any_logprobs || seat.logprobs.wanted;
    row_seqs.push_back(seq);
    row_logprobs_.push_back(seat.logprobs.wanted);
  }
  for (auto row = static_cast<std::uint32_t>(row_seqs.size()); row < counts_.num_rows; ++row) {
    arrays.last_tokens[row] = row;
    arrays.seats[row] = kNoSeat;
    arrays.params[row] = {};
    arrays.rules[row] = {};
    arrays.logprobs[row] = {};
  }
}

void StepSlot::fill_scored(const StepBatch& batch, std::span<const ops::SeatSampler> seats) {
  scored_rows_.clear();
  std::uint32_t count = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) count += batch.num_scored(seq);
  ScoredArrays arrays;
  scored_bytes_ = count == 0 ? 0 : ScoredArrays::place(count, scored_.data(), arrays);
  for_each_scored(batch, [&](const ScoredToken& scored) {
    const std::size_t row = scored_rows_.size();
    const std::uint32_t num_top = seats[batch.seats[scored.seq]].logprobs.num_top;
    arrays.tokens[row] = scored.token;
    arrays.targets[row] = {ops::SampleStatus::kOk, scored.target};
    arrays.logprobs[row] = {num_top, true, false};
    scored_rows_.push_back({scored.seq, num_top});
  });
}

void StepSlot::put_answer(StepAnswer& answer) const {
  const AnswerArrays& arrays = answer_arrays_;
  answer.begin(num_seqs);
  for (std::size_t row = 0; row < row_seqs.size(); ++row) {
    answer.set_sampled(row_seqs[row], arrays.sampled[row]);
    if (row_logprobs_[row] && arrays.sampled[row].status == ops::SampleStatus::kOk) {
      answer.set_logprobs(row_seqs[row], arrays.scores[row], arrays.top + row * ops::kMaxTop);
    }
  }
  for (std::size_t row = 0; row < scored_rows_.size(); ++row) {
    answer.add_score(scored_rows_[row].seq, arrays.token_scores[row],
                     {arrays.token_top + row * ops::kMaxTop, scored_rows_[row].num_top});
  }
}

}  // namespace inferno::engine
