#include "engine/cuda/cuda_sampler.h"

#include <algorithm>

#include "engine/base/layout.h"
#include "ops/process_logits/process_logits_cuda.h"
#include "ops/sample/sample_cuda.h"
#include "ops/score/score_cuda.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

// Room for the lists of sequences that arrive together.
constexpr std::uint64_t kStagingBytes = 4 << 20;

// One sequence's lists and tokens, from `base` on; answers the bytes.
struct StagedSeat {
  ops::SeatLists lists;
  std::uint32_t* token_ids = nullptr;

  std::uint64_t place(std::uint32_t vocab_size, std::uint64_t num_tokens, std::byte* base) {
    Layout layout;
    const auto place = [&](auto*& array, std::uint64_t length) {
      const std::uint64_t offset = layout.place(length * sizeof(*array));
      if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + offset);
    };
    place(lists.masks, 2 * ops::mask_words(vocab_size));
    place(lists.biases, ops::kMaxBiases);
    place(lists.word_ids, ops::kMaxBannedWordTokens);
    place(lists.word_ends, ops::kMaxBannedWords);
    place(lists.tail, ops::kTailLen);
    place(token_ids, num_tokens);
    return layout.bytes();
  }
};

std::uint64_t staged_bytes(std::uint32_t vocab_size, std::uint64_t num_tokens) {
  return StagedSeat().place(vocab_size, num_tokens, nullptr);
}

}  // namespace

CudaSampler::CudaSampler(const ops::cuda::CudaOp& op, const CudaSamplerArrays& arrays,
                         std::uint32_t max_batch_size, std::uint32_t longest)
    : op_(op),
      arrays_(arrays),
      seats_(max_batch_size),
      staging_(kStagingBytes + staged_bytes(arrays.states.vocab_size, longest)) {}

// Memory that the device has read, or that never was given.
std::byte* CudaSampler::room_for(std::uint64_t bytes) {
  if (staged_bytes_ + bytes > staging_.bytes()) {
    arrived_.wait();
    staged_bytes_ = 0;
  }
  return staging_.data() + staged_bytes_;
}

void CudaSampler::copy(void* to, const void* from, std::uint64_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, kind, op_.stream), "cudaMemcpyAsync");
}

void CudaSampler::bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) {
  const std::uint32_t vocab_size = arrays_.states.vocab_size;
  const std::uint64_t num_tokens = history.token_ids.size();
  const std::uint64_t bytes = staged_bytes(vocab_size, num_tokens);
  StagedSeat staged;
  staged.place(vocab_size, num_tokens, room_for(bytes));
  ops::SeatSampler& sampler = seats_[history.seat];
  sampler = ops::bind_sampler(spec, history, vocab_size, staged.lists);
  const auto alone = no_waiting_for_device();
  bool is_staged = copy_lists(sampler, staged.lists);
  if (sampler.rules.has_penalties != 0) {
    std::copy(history.token_ids.begin(), history.token_ids.end(), staged.token_ids);
    ops::cuda::count_tokens_cuda(
        op_, {.token_ids = staged.token_ids,
              .num_tokens = static_cast<std::uint32_t>(num_tokens),
              .prompt_len = history.prompt_len,
              .vocab_size = vocab_size,
              .counts = arrays_.states.counts + history.seat * ops::counts_stride(vocab_size)});
    is_staged = true;
  }
  if (!is_staged) return;
  staged_bytes_ += bytes;
  arrived_.record(op_.stream);
}

// What the seat's rules will read of the lists. Answers whether that was anything.
bool CudaSampler::copy_lists(const ops::SeatSampler& sampler, const ops::SeatLists& lists) {
  const ops::SeatStates& states = arrays_.states;
  const ops::LogitRules& rules = sampler.rules;
  const std::size_t seat = rules.seat;
  bool any = false;
  const auto copy_list = [&](auto* all, const auto* list, std::size_t stride, std::size_t size) {
    copy(all + seat * stride, list, size * sizeof(*list), cudaMemcpyHostToDevice);
    any = any || size > 0;
  };
  const std::size_t words = 2 * ops::mask_words(states.vocab_size);
  copy_list(states.masks, lists.masks, words, sampler.has_masks() ? words : 0);
  copy_list(states.biases, lists.biases, ops::kMaxBiases, rules.num_biases);
  const std::uint32_t num_words = rules.num_banned_words;
  const std::uint32_t num_ids = num_words == 0 ? 0 : lists.word_ends[num_words - 1];
  copy_list(states.word_ids, lists.word_ids, ops::kMaxBannedWordTokens, num_ids);
  copy_list(states.word_ends, lists.word_ends, ops::kMaxBannedWords, num_words);
  copy_list(states.tails, lists.tail, ops::kTailLen, num_words == 0 ? 0 : ops::kTailLen);
  return any;
}

void CudaSampler::upload(const StepSlot& slot) {
  const std::size_t words = ops::mask_words(arrays_.states.vocab_size);
  copy(arrays_.masks, slot.masks(), slot.num_masks * words * sizeof(std::uint32_t),
       cudaMemcpyHostToDevice);
  copy(arrays_.scored, slot.scored(), slot.scored_bytes(), cudaMemcpyHostToDevice);
}

void CudaSampler::sample(const StepSlot& slot, const StepArrays& step, float* logits) {
  const auto num_rows = static_cast<std::uint32_t>(slot.row_seqs.size());
  if (num_rows == 0) return;
  const ops::LogitRules* rules = slot.any_rules ? step.rules : nullptr;
  if (slot.any_rules) {
    ops::cuda::process_logits_cuda(op_, {.logits = logits,
                                         .rules = rules,
                                         .states = arrays_.states,
                                         .masks = arrays_.masks,
                                         .num_rows = num_rows,
                                         .out = arrays_.processed});
  }
  ops::cuda::sample_cuda(op_, {.logits = logits,
                               .processed = arrays_.processed,
                               .rules = rules,
                               .params = step.params,
                               .seats = step.seats,
                               .num_rows = num_rows,
                               .vocab_size = arrays_.states.vocab_size,
                               .any_random = slot.any_random,
                               .any_filter = slot.any_filter,
                               .workspace = arrays_.sample,
                               .sampled = arrays_.sampled,
                               .sampled_ids = arrays_.sampled_ids,
                               .kept = slot.any_logprobs ? arrays_.kept : nullptr});
  if (slot.any_state) {
    ops::cuda::note_sampled_cuda(op_, {step.rules, arrays_.sampled, arrays_.states, num_rows});
  }
  if (slot.any_logprobs) score_rows(step, rules, num_rows, logits);
  const AnswerArrays& answer = slot.answer();
  copy(answer.sampled, arrays_.sampled, num_rows * sizeof(ops::Sampled), cudaMemcpyDeviceToHost);
  if (!slot.any_logprobs) return;
  copy(answer.scores, arrays_.scores, num_rows * sizeof(ops::RowScore), cudaMemcpyDeviceToHost);
  copy(answer.top, arrays_.top, num_rows * ops::kMaxTop * sizeof(ops::TokenLogit),
       cudaMemcpyDeviceToHost);
}

void CudaSampler::score_rows(const StepArrays& step, const ops::LogitRules* rules,
                             std::uint32_t num_rows, float* logits) {
  ops::cuda::score_cuda(op_, {.logits = logits,
                              .rows = step.logprobs,
                              .targets = arrays_.sampled,
                              .processed = arrays_.processed,
                              .rules = rules,
                              .kept = arrays_.kept,
                              .num_rows = num_rows,
                              .vocab_size = arrays_.states.vocab_size,
                              .workspace = arrays_.score,
                              .scores = arrays_.scores,
                              .top = arrays_.top});
}

void CudaSampler::score(const StepSlot& slot, std::uint32_t first, std::uint32_t count,
                        float* logits) {
  ScoredArrays scored;
  ScoredArrays::place(slot.num_scored(), arrays_.scored, scored);
  ops::RowScore* scores = arrays_.token_scores + first;
  ops::TokenLogit* top = arrays_.token_top + std::size_t{first} * ops::kMaxTop;
  ops::cuda::score_cuda(op_, {.logits = logits,
                              .rows = scored.logprobs + first,
                              .targets = scored.targets + first,
                              .num_rows = count,
                              .vocab_size = arrays_.states.vocab_size,
                              .workspace = arrays_.score,
                              .scores = scores,
                              .top = top});
  const AnswerArrays& answer = slot.answer();
  copy(answer.token_scores + first, scores, count * sizeof(ops::RowScore), cudaMemcpyDeviceToHost);
  copy(answer.token_top + std::size_t{first} * ops::kMaxTop, top,
       std::size_t{count} * ops::kMaxTop * sizeof(ops::TokenLogit), cudaMemcpyDeviceToHost);
}

}  // namespace inferno::engine
