#include "ops/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace inferno::ops {
namespace {

[[noreturn]] void refuse(const std::string& field, const std::string& what) {
  throw std::invalid_argument("invalid_batch: sampler." + field + ": " + what);
}

void require(bool good, const char* field, float value) {
  if (!good) refuse(field, "got " + std::to_string(value));
}

void check_at_most(const char* field, std::size_t value, std::size_t most) {
  if (value <= most) return;
  refuse(field, "expected at most " + std::to_string(most) + ", got " + std::to_string(value));
}

void check_ids(const char* field, std::span<const std::uint32_t> ids, std::uint32_t vocab_size) {
  for (const std::uint32_t id : ids) {
    if (id >= vocab_size) {
      refuse(field, "expected ids less than " + std::to_string(vocab_size) + ", got " +
                        std::to_string(id));
    }
  }
}

void check_bias(std::span<const TokenBias> bias, std::uint32_t vocab_size) {
  check_at_most("bias", bias.size(), kMaxBiases);
  std::vector<std::uint32_t> ids;
  for (const TokenBias& entry : bias) {
    require(std::isfinite(entry.value), "bias", entry.value);
    ids.push_back(entry.token_id);
  }
  check_ids("bias", ids, vocab_size);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) refuse("bias", "token " + std::to_string(*twice) + " is given twice");
}

void check_words(const SamplerSpec& spec, std::uint32_t vocab_size) {
  check_at_most("banned_word_lens", spec.banned_word_lens.size(), kMaxBannedWords);
  check_at_most("banned_words", spec.banned_words.size(), kMaxBannedWordTokens);
  check_ids("banned_words", spec.banned_words, vocab_size);
  std::uint64_t sum = 0;
  for (const std::uint32_t length : spec.banned_word_lens) {
    if (length < 2 || length > kTailLen) {
      refuse("banned_word_lens",
             "expected 2 to " + std::to_string(kTailLen) + ", got " + std::to_string(length));
    }
    sum += length;
  }
  if (sum != spec.banned_words.size()) {
    refuse("banned_words", "expected the " + std::to_string(sum) +
                               " tokens of banned_word_lens, got " +
                               std::to_string(spec.banned_words.size()));
  }
}

void set_ids(std::uint32_t* mask, std::span<const std::uint32_t> ids) {
  for (const std::uint32_t id : ids) mask[id / 32] |= 1U << (id % 32);
}

void clear_ids(std::uint32_t* mask, std::span<const std::uint32_t> ids) {
  for (const std::uint32_t id : ids) mask[id / 32] &= ~(1U << (id % 32));
}

void fill_masks(const SamplerSpec& spec, const SeatHistory& history, std::size_t words,
                std::uint32_t* masks) {
  std::uint32_t* allowed = masks;
  std::uint32_t* before_end = masks + words;
  std::fill_n(allowed, words, spec.allowed_ids.empty() ? 0xFFFFFFFFU : 0U);
  set_ids(allowed, spec.allowed_ids);
  clear_ids(allowed, spec.banned_ids);
  std::copy_n(allowed, words, before_end);
  clear_ids(before_end, history.end_token_ids);
  clear_ids(before_end, spec.stop_token_ids);
}

void fill_words(const SamplerSpec& spec, const SeatHistory& history, const SeatLists& lists) {
  std::copy(spec.banned_words.begin(), spec.banned_words.end(), lists.word_ids);
  std::uint32_t end = 0;
  for (std::size_t i = 0; i < spec.banned_word_lens.size(); ++i) {
    lists.word_ends[i] = end += spec.banned_word_lens[i];
  }
  const std::size_t length = history.token_ids.size();
  for (std::size_t i = length - std::min<std::size_t>(length, kTailLen); i < length; ++i) {
    lists.tail[i % kTailLen] = history.token_ids[i];
  }
}

}  // namespace

void check_sampler(const SamplerSpec& spec, std::uint32_t vocab_size) {
  const auto is_penalty = [](float value) { return std::abs(value) <= kMaxPenalty; };
  require(std::isfinite(spec.temperature) && spec.temperature >= 0, "temperature",
          spec.temperature);
  require(spec.top_p > 0 && spec.top_p <= 1, "top_p", spec.top_p);
  require(spec.min_p >= 0 && spec.min_p <= 1, "min_p", spec.min_p);
  require(is_penalty(spec.presence_penalty), "presence_penalty", spec.presence_penalty);
  require(is_penalty(spec.frequency_penalty), "frequency_penalty", spec.frequency_penalty);
  require(is_penalty(spec.repetition_penalty) && spec.repetition_penalty > 0, "repetition_penalty",
          spec.repetition_penalty);
  check_at_most("num_logprobs", spec.num_logprobs, kMaxTop);
  check_ids("stop_token_ids", spec.stop_token_ids, vocab_size);
  check_ids("allowed_ids", spec.allowed_ids, vocab_size);
  check_ids("banned_ids", spec.banned_ids, vocab_size);
  check_bias(spec.bias, vocab_size);
  check_words(spec, vocab_size);
}

SampleParams SeatSampler::params_at(std::uint32_t position) const {
  SampleParams at = params;
  at.position = position;
  return at;
}

LogitRules SeatSampler::rules_at(std::uint32_t position, std::uint32_t mask_row) const {
  LogitRules at = rules;
  at.position = position;
  at.mask_row = mask_row;
  if (position < end_from) at.seat_mask = SeatMask::kBeforeEnd;
  return at;
}

SeatSampler bind_sampler(const SamplerSpec& spec, const SeatHistory& history,
                         std::uint32_t vocab_size, const SeatLists& lists) {
  SeatSampler seat;
  seat.params = {.temperature = spec.temperature,
                 .top_k = spec.top_k,
                 .top_p = spec.top_p,
                 .min_p = spec.min_p,
                 .seed = spec.seed};
  seat.logprobs = {spec.num_logprobs, spec.want_logprob || spec.num_logprobs > 0,
                   spec.processed_logprobs};
  seat.end_from = spec.end_from;
  LogitRules& rules = seat.rules;
  rules.seat = history.seat;
  const bool has_list = !spec.allowed_ids.empty() || !spec.banned_ids.empty();
  if (has_list) rules.seat_mask = SeatMask::kAllowed;
  if (has_list || spec.end_from > history.token_ids.size()) {
    fill_masks(spec, history, mask_words(vocab_size), lists.masks);
  } else {
    seat.end_from = 0;  // over already; nothing reads the mask
  }
  rules.num_biases = static_cast<std::uint32_t>(spec.bias.size());
  std::copy(spec.bias.begin(), spec.bias.end(), lists.biases);
  rules.num_banned_words = static_cast<std::uint32_t>(spec.banned_word_lens.size());
  if (rules.num_banned_words > 0) fill_words(spec, history, lists);
  rules.repetition_penalty = spec.repetition_penalty;
  rules.frequency_penalty = spec.frequency_penalty;
  rules.presence_penalty = spec.presence_penalty;
  rules.has_penalties =
      spec.repetition_penalty != 1 || spec.frequency_penalty != 0 || spec.presence_penalty != 0;
  return seat;
}

}  // namespace inferno::ops
