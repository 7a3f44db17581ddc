#include "ops/process_logits/process_logits.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace inferno::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Neither -infinity nor what the sampler refuses.
bool is_finite(float logit) { return logit > -kInfinity && logit < kInfinity; }

void forbid(float& logit) {
  if (is_finite(logit)) logit = -kInfinity;
}

void apply_mask(std::span<float> logits, const std::uint32_t* mask) {
  for (std::size_t word = 0; word < mask_words(static_cast<std::uint32_t>(logits.size())); ++word) {
    if (mask[word] == 0xFFFFFFFF) continue;
    const std::size_t end = std::min(logits.size(), (word + 1) * 32);
    for (std::size_t id = word * 32; id < end; ++id) {
      if ((mask[word] >> (id % 32) & 1) == 0) forbid(logits[id]);
    }
  }
}

void ban_words(std::span<float> logits, const LogitRules& rules, const SeatStates& states) {
  const std::uint32_t* ids = states.word_ids + std::size_t{rules.seat} * kMaxBannedWordTokens;
  const std::uint32_t* ends = states.word_ends + std::size_t{rules.seat} * kMaxBannedWords;
  const std::uint32_t* tail = states.tails + std::size_t{rules.seat} * kTailLen;
  std::uint32_t begin = 0;
  for (std::uint32_t word = 0; word < rules.num_banned_words; ++word) {
    const std::uint32_t last = ends[word] - 1;
    bool precede = last - begin <= rules.position;
    for (std::uint32_t i = begin; precede && i < last; ++i) {
      precede = tail[(rules.position - (last - i)) % kTailLen] == ids[i];
    }
    if (precede) forbid(logits[ids[last]]);
    begin = ends[word];
  }
}

void add_biases(std::span<float> logits, const LogitRules& rules, const SeatStates& states) {
  const TokenBias* biases = states.biases + std::size_t{rules.seat} * kMaxBiases;
  for (std::uint32_t i = 0; i < rules.num_biases; ++i) {
    float& logit = logits[biases[i].token_id];
    if (is_finite(logit)) logit = std::min(logit + biases[i].value, kLargest);
  }
}

float penalised(float logit, std::uint16_t count, const LogitRules& rules) {
  const float r = rules.repetition_penalty;
  logit = logit > 0 ? std::min(logit / r, kLargest) : logit * r;
  const auto times = static_cast<std::uint16_t>(count & kMaxCount);
  if (times != 0) {
    logit = logit - rules.frequency_penalty * static_cast<float>(times);
    logit = logit - rules.presence_penalty;
  }
  return std::min(logit, kLargest);
}

void apply_penalties(std::span<float> logits, const LogitRules& rules, const SeatStates& states) {
  const auto vocab_size = static_cast<std::uint32_t>(logits.size());
  const std::uint16_t* counts = states.counts + rules.seat * counts_stride(vocab_size);
  const auto apply = [&](std::size_t id) {
    if (counts[id] != 0 && is_finite(logits[id])) {
      logits[id] = penalised(logits[id], counts[id], rules);
    }
  };
  std::size_t id = 0;
  for (; id + 4 <= logits.size(); id += 4) {  // most ids occur nowhere
    std::uint64_t four = 0;
    std::memcpy(&four, counts + id, sizeof(four));
    if (four == 0) continue;
    for (std::size_t i = id; i < id + 4; ++i) apply(i);
  }
  for (; id < logits.size(); ++id) apply(id);
}

void count(std::uint16_t& entry) {
  if ((entry & kMaxCount) < kMaxCount) ++entry;
}

}  // namespace

void process_logits(std::span<const float> logits, const LogitRules& rules,
                    const SeatStates& states, std::span<const std::uint32_t> masks,
                    std::span<float> out) {
  std::copy(logits.begin(), logits.end(), out.begin());
  const std::size_t words = mask_words(static_cast<std::uint32_t>(logits.size()));
  if (rules.seat_mask != SeatMask::kNone) {
    const auto which = static_cast<std::size_t>(rules.seat_mask);
    apply_mask(out, states.masks + (std::size_t{rules.seat} * 2 + which) * words);
  }
  if (rules.mask_row != kNoMaskRow) apply_mask(out, masks.data() + rules.mask_row * words);
  ban_words(out, rules, states);
  add_biases(out, rules, states);
  if (rules.has_penalties != 0) apply_penalties(out, rules, states);
}

void note_sampled(const LogitRules& rules, const SeatStates& states, std::uint32_t token_id) {
  if (rules.num_banned_words != 0) {
    states.tails[std::size_t{rules.seat} * kTailLen + rules.position % kTailLen] = token_id;
  }
  if (rules.has_penalties != 0) {
    count(states.counts[rules.seat * counts_stride(states.vocab_size) + token_id]);
  }
}

void count_tokens(std::span<std::uint16_t> counts, std::span<const std::uint32_t> token_ids,
                  std::uint32_t prompt_len) {
  std::fill(counts.begin(), counts.end(), std::uint16_t{0});
  for (std::size_t i = 0; i < token_ids.size(); ++i) {
    std::uint16_t& entry = counts[token_ids[i]];
    if (i < prompt_len) {
      entry |= kInPrompt;
    } else {
      count(entry);
    }
  }
}

}  // namespace inferno::ops
