// A seat's sampler: what a sequence wants of sampling is bound to its seat once, and says from then
// on what each of its rows gets.
#pragma once

#include <cstdint>
#include <span>

#include "ops/process_logits/process_logits.h"
#include "ops/sample/sample.h"
#include "ops/score/score.h"

namespace inferno::ops {

// What a sequence wants. Ids are below vocab_size.
struct SamplerSpec {
  float temperature = 0;  // as in SampleParams, to seed
  std::uint32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  std::uint64_t seed = 0;
  float presence_penalty = 0;  // of completion tokens; finite, up to kMaxPenalty
  float frequency_penalty = 0;
  float repetition_penalty = 1;  // of prompt and completion tokens, above 0; 1: none
  std::uint32_t end_from = 0;    // index in the sequence from which an end token may be sampled
  std::span<const std::uint32_t> stop_token_ids{};  // end tokens of this sequence
  std::span<const TokenBias> bias{};                // up to kMaxBiases, no id twice
  std::span<const std::uint32_t> allowed_ids{};     // empty: all
  std::span<const std::uint32_t> banned_ids{};
  // Words of 2 to kTailLen tokens, one after the other: the last token is banned where the others
  // precede. Up to kMaxBannedWords and kMaxBannedWordTokens.
  std::span<const std::uint32_t> banned_words{};
  std::span<const std::uint32_t> banned_word_lens{};
  std::uint32_t num_logprobs = 0;  // alternatives, up to kMaxTop
  bool want_logprob = false;
  bool processed_logprobs = false;  // of what is drawn from, else of the model's own distribution
};

inline constexpr float kMaxPenalty = 1e30F;  // times any count it is a float

// Throws std::invalid_argument, "invalid_batch: sampler.FIELD: …", for what a seat cannot hold.
void check_sampler(const SamplerSpec& spec, std::uint32_t vocab_size);

// The log probabilities that a row wants.
struct RowLogprobs {
  std::uint32_t num_top = 0;
  bool wanted = false;
  bool processed = false;
};

// A bound seat, without what lies in SeatStates.
struct SeatSampler {
  SampleParams params;
  LogitRules rules;
  RowLogprobs logprobs;
  std::uint32_t end_from = 0;

  // Whether some row reads the seat's masks.
  bool has_masks() const { return end_from > 0 || rules.seat_mask != SeatMask::kNone; }
  SampleParams params_at(std::uint32_t position) const;
  LogitRules rules_at(std::uint32_t position, std::uint32_t mask_row) const;
};

// A sequence as it stands when it is bound.
struct SeatHistory {
  std::uint32_t seat = 0;
  std::uint32_t prompt_len = 0;
  std::span<const std::uint32_t> token_ids{};      // prompt, and completion after a pre-emption
  std::span<const std::uint32_t> end_token_ids{};  // of the model
};

// The part of a seat's state that is made of lists; of one seat, in SeatStates' shapes.
struct SeatLists {
  std::uint32_t* masks = nullptr;
  TokenBias* biases = nullptr;
  std::uint32_t* word_ids = nullptr;
  std::uint32_t* word_ends = nullptr;
  std::uint32_t* tail = nullptr;
};

// Of a checked spec. Writes what the rules will read of the lists; counts are the caller's
// (count_tokens) where rules.has_penalties.
SeatSampler bind_sampler(const SamplerSpec& spec, const SeatHistory& history,
                         std::uint32_t vocab_size, const SeatLists& lists);

}  // namespace inferno::ops
