// What is done to a row of logits before a token is drawn from it, in this order:
//
//   1. -infinity for ids that may not be sampled: what the seat's mask or the step's mask leaves
//      out, and the last token of a banned word whose others precede it in the sequence
//   2. logit += bias
//   3. repetition penalty: logit > 0 ? logit / r : logit * r, for ids in prompt or completion
//   4. logit -= frequency_penalty * count, then logit -= presence_penalty, for ids in the
//   completion
//
// Order and formulas are those of vLLM's sampler (allowed ids, bad words, min_tokens, bias,
// penalties); the repetition penalty is that of Keskar et al., "CTRL: A Conditional Transformer
// Language Model", 2019, as `transformers` has it, the others are those of OpenAI's API. Banned
// words are looked for in prompt and completion, as `transformers` does. A NaN or +infinity stays
// for the sampler to find; what overflows becomes the largest float.
//
// What an id gets depends on the row, its rules and its seat's state alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace inferno::ops {

inline constexpr std::uint32_t kMaxBiases = 1024;
inline constexpr std::uint32_t kMaxBannedWords = 512;
inline constexpr std::uint32_t kMaxBannedWordTokens = 2048;  // of all words together
inline constexpr std::uint32_t kTailLen = 16;                // a banned word's longest, too
inline constexpr std::uint32_t kNoMaskRow = 0xFFFFFFFF;

struct TokenBias {
  std::uint32_t token_id = 0;
  float value = 0;
};

// Words of 32 bits in a mask of ids; bit id % 32 of word id / 32 says that the id may be sampled.
constexpr std::size_t mask_words(std::uint32_t vocab_size) {
  return (std::size_t{vocab_size} + 31) / 32;
}

// Counts of a seat: a multiple of 16 bytes.
constexpr std::size_t counts_stride(std::uint32_t vocab_size) {
  return (std::size_t{vocab_size} + 7) / 8 * 8;
}

// How often an id stands in the completion, up to 32,767, and whether it stands in the prompt.
inline constexpr std::uint16_t kInPrompt = 0x8000;
inline constexpr std::uint16_t kMaxCount = 0x7FFF;

// The state of N seats, dense arrays on the device. A part is read only where a row's rules say so.
struct SeatStates {
  std::uint32_t vocab_size = 0;        // V
  std::uint32_t* masks = nullptr;      // [N, 2, mask_words(V)] by SeatMask
  TokenBias* biases = nullptr;         // [N, kMaxBiases] no id twice
  std::uint32_t* word_ids = nullptr;   // [N, kMaxBannedWordTokens] words one after the other
  std::uint32_t* word_ends = nullptr;  // [N, kMaxBannedWords] running sum of their lengths
  std::uint32_t* tails = nullptr;      // [N, kTailLen] the token at index i, at i % kTailLen
  std::uint16_t* counts = nullptr;     // [N, counts_stride(V)]
};

enum class SeatMask : std::uint32_t {
  kAllowed,    // what the request allows
  kBeforeEnd,  // the same less the end tokens
  kNone
};

// What one row gets.
struct LogitRules {
  std::uint32_t seat = 0;      // whose state
  std::uint32_t position = 0;  // index of the token to be sampled in the whole sequence
  SeatMask seat_mask = SeatMask::kNone;
  std::uint32_t mask_row = kNoMaskRow;  // of the step's masks
  std::uint32_t num_biases = 0;
  std::uint32_t num_banned_words = 0;
  std::uint32_t has_penalties = 0;  // counts are kept
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;

  // Whether the row is not drawn from as the model gave it.
  constexpr bool change_logits() const {
    return seat_mask != SeatMask::kNone || mask_row != kNoMaskRow || num_biases != 0 ||
           num_banned_words != 0 || has_penalties != 0;
  }
  // Whether the state changes with a sampled token.
  constexpr bool change_state() const { return has_penalties != 0 || num_banned_words != 0; }
};

// out [V] = the row under its rules. `masks` [*, mask_words(V)]: of the step.
void process_logits(std::span<const float> logits, const LogitRules& rules,
                    const SeatStates& states, std::span<const std::uint32_t> masks,
                    std::span<float> out);

// The seat's counts and tail after `token_id` was sampled at rules.position.
void note_sampled(const LogitRules& rules, const SeatStates& states, std::uint32_t token_id);

// Counts of one seat from nothing: the first prompt_len ids are the prompt, the rest completion.
void count_tokens(std::span<std::uint16_t> counts, std::span<const std::uint32_t> token_ids,
                  std::uint32_t prompt_len);

}  // namespace inferno::ops
