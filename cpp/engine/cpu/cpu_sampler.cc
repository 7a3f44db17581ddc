#include "engine/cpu/cpu_sampler.h"

namespace inferno::engine {

CpuSampler::CpuSampler(ThreadPool& threads, const CpuSamplerArrays& arrays,
                       std::uint32_t max_batch_size)
    : threads_(threads),
      arrays_(arrays),
      seats_(max_batch_size),
      last_sampled_(max_batch_size),
      rows_(max_batch_size) {}

void CpuSampler::bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) {
  const ops::SeatStates& states = arrays_.states;
  const std::size_t seat = history.seat;
  const std::uint32_t vocab_size = states.vocab_size;
  seats_[seat] = ops::bind_sampler(spec, history, vocab_size,
                                   {.masks = states.masks + seat * 2 * ops::mask_words(vocab_size),
                                    .biases = states.biases + seat * ops::kMaxBiases,
                                    .word_ids = states.word_ids + seat * ops::kMaxBannedWordTokens,
                                    .word_ends = states.word_ends + seat * ops::kMaxBannedWords,
                                    .tail = states.tails + seat * ops::kTailLen});
  if (seats_[seat].rules.has_penalties == 0) return;
  const std::size_t stride = ops::counts_stride(vocab_size);
  ops::count_tokens({states.counts + seat * stride, stride}, history.token_ids, history.prompt_len);
}

void CpuSampler::sample(const StepBatch& batch, std::span<const std::uint32_t> row_seqs,
                        const float* logits, StepAnswer& answer) {
  const std::size_t vocab_size = arrays_.states.vocab_size;
  const auto num_rows = static_cast<std::uint32_t>(row_seqs.size());
  threads_.parallel_for(num_rows, [&](std::uint32_t row, std::uint32_t thread) {
    sample_row(batch, row_seqs[row], {logits + row * vocab_size, vocab_size}, thread, rows_[row]);
  });
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    const std::uint32_t seq = row_seqs[row];
    const Row& result = rows_[row];
    answer.set_sampled(seq, result.sampled);
    if (result.sampled.status != ops::SampleStatus::kOk) continue;
    last_sampled_[batch.seats[seq]] = result.sampled.token_id;
    if (seats_[batch.seats[seq]].logprobs.wanted) {
      answer.set_logprobs(seq, result.score, result.top.data());
    }
  }
}

void CpuSampler::sample_row(const StepBatch& batch, std::uint32_t seq,
                            std::span<const float> logits, std::uint32_t thread, Row& row) {
  const std::size_t vocab_size = logits.size();
  const ops::SeatSampler& seat = seats_[batch.seats[seq]];
  const std::uint32_t position = batch.context_lens[seq];
  const ops::LogitRules rules = seat.rules_at(position, batch.mask_rows[seq]);
  std::span<const float> drawn = logits;
  if (rules.change_logits()) {
    const std::span<float> processed{arrays_.processed + thread * vocab_size, vocab_size};
    ops::process_logits(logits, rules, arrays_.states, batch.masks, processed);
    drawn = processed;
  }
  const ops::SampleScratch scratch{{arrays_.weights + thread * vocab_size, vocab_size},
                                   {arrays_.ranked + thread * vocab_size, vocab_size}};
  ops::Kept kept;
  row.sampled = ops::sample_row(drawn, seat.params_at(position), scratch, &kept);
  if (row.sampled.status != ops::SampleStatus::kOk) return;
  ops::note_sampled(rules, arrays_.states, row.sampled.token_id);
  const ops::RowLogprobs& wanted = seat.logprobs;
  if (!wanted.wanted) return;
  row.score = ops::score_row(wanted.processed ? drawn : logits, wanted.processed ? &kept : nullptr,
                             row.sampled.token_id, std::span(row.top).first(wanted.num_top));
}

void CpuSampler::score(const StepBatch& batch, std::span<const ScoredToken> tokens,
                       const float* logits, StepAnswer& answer) {
  const std::size_t vocab_size = arrays_.states.vocab_size;
  const auto num_rows = static_cast<std::uint32_t>(tokens.size());
  const auto num_top = [&](std::uint32_t row) {
    return seats_[batch.seats[tokens[row].seq]].logprobs.num_top;
  };
  threads_.parallel_for(num_rows, [&](std::uint32_t row, std::uint32_t) {
    rows_[row].score =
        ops::score_row({logits + row * vocab_size, vocab_size}, nullptr, tokens[row].target,
                       std::span(rows_[row].top).first(num_top(row)));
  });
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    answer.add_score(tokens[row].seq, rows_[row].score,
                     std::span(rows_[row].top).first(num_top(row)));
  }
}

}  // namespace inferno::engine
