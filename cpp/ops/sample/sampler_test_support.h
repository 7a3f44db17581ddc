// What the tests of a seat's sampler share: seats that own their state, random specs, and the
// logits that a spec makes by the definition, in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/base/test_support.h"
#include "ops/sample/sampler.h"

namespace inferno::ops::test {

// Owns what SamplerSpec views.
struct OwnedSpec {
  SamplerSpec scalars{};
  std::vector<std::uint32_t> stop_token_ids{}, allowed_ids{}, banned_ids{}, banned_words{},
      banned_word_lens{};
  std::vector<TokenBias> bias{};

  SamplerSpec view() const {
    SamplerSpec spec = scalars;
    spec.stop_token_ids = stop_token_ids;
    spec.bias = bias;
    spec.allowed_ids = allowed_ids;
    spec.banned_ids = banned_ids;
    spec.banned_words = banned_words;
    spec.banned_word_lens = banned_word_lens;
    return spec;
  }
};

// Owns the states of some seats, on the host.
class OwnedStates {
 public:
  OwnedStates(std::uint32_t num_seats, std::uint32_t vocab_size)
      : masks(num_seats * 2 * mask_words(vocab_size)),
        biases(std::size_t{num_seats} * kMaxBiases),
        word_ids(std::size_t{num_seats} * kMaxBannedWordTokens),
        word_ends(std::size_t{num_seats} * kMaxBannedWords),
        tails(std::size_t{num_seats} * kTailLen),
        counts(num_seats * counts_stride(vocab_size)),
        vocab_size_(vocab_size) {}

  SeatStates view() {
    return {vocab_size_,      masks.data(), biases.data(), word_ids.data(),
            word_ends.data(), tails.data(), counts.data()};
  }
  SeatSampler bind(const SamplerSpec& spec, const SeatHistory& history) {
    const std::size_t seat = history.seat;
    const SeatSampler bound = bind_sampler(
        spec, history, vocab_size_,
        {masks.data() + seat * 2 * mask_words(vocab_size_), biases.data() + seat * kMaxBiases,
         word_ids.data() + seat * kMaxBannedWordTokens, word_ends.data() + seat * kMaxBannedWords,
         tails.data() + seat * kTailLen});
    const std::size_t stride = counts_stride(vocab_size_);
    count_tokens({counts.data() + seat * stride, stride}, history.token_ids, history.prompt_len);
    return bound;
  }

  std::vector<std::uint32_t> masks;
  std::vector<TokenBias> biases;
  std::vector<std::uint32_t> word_ids, word_ends, tails;
  std::vector<std::uint16_t> counts;

 private:
  std::uint32_t vocab_size_;
};

inline std::vector<std::uint32_t> random_ids(Random& random, std::uint32_t count,
                                             std::uint32_t vocab_size) {
  std::vector<std::uint32_t> ids(count);
  for (std::uint32_t& id : ids) id = random.integer(0, vocab_size - 1);
  return ids;
}

// Each list and each penalty with a chance of its own. Words that the tail may hold, too.
inline OwnedSpec random_spec(Random& random, const std::vector<std::uint32_t>& token_ids,
                             std::uint32_t vocab_size) {
  const auto chance = [&](std::uint32_t of) { return random.integer(1, of) == 1; };
  OwnedSpec spec;
  if (chance(3)) spec.scalars.repetition_penalty = 0.5F + std::abs(random.normal());
  if (chance(3)) spec.scalars.frequency_penalty = random.normal();
  if (chance(3)) spec.scalars.presence_penalty = random.normal();
  if (chance(3)) {
    spec.scalars.end_from = static_cast<std::uint32_t>(token_ids.size()) + random.integer(0, 3);
  }
  if (chance(3)) spec.stop_token_ids = random_ids(random, 3, vocab_size);
  if (chance(4)) spec.allowed_ids = random_ids(random, vocab_size, vocab_size);
  if (chance(4)) spec.banned_ids = random_ids(random, vocab_size / 8, vocab_size);
  if (chance(2)) {
    std::vector<bool> taken(vocab_size);
    for (const std::uint32_t id : random_ids(random, std::min(vocab_size, 300U), vocab_size)) {
      if (!taken[id]) spec.bias.push_back({id, 3 * random.normal()});
      taken[id] = true;
    }
  }
  for (std::uint32_t i = chance(2) ? random.integer(1, 20) : 0; i > 0; --i) {
    const std::uint32_t length = random.integer(2, kTailLen);
    const bool precede = chance(2) && token_ids.size() >= length - 1;
    for (std::uint32_t j = 1; j < length; ++j) {
      spec.banned_words.push_back(precede ? token_ids[token_ids.size() - length + j]
                                          : random.integer(0, vocab_size - 1));
    }
    spec.banned_words.push_back(random.integer(0, vocab_size - 1));
    spec.banned_word_lens.push_back(length);
  }
  return spec;
}

// A row under a spec, straight from the definition. `mask`: of the step, or empty.
inline std::vector<double> reference_logits(std::span<const float> logits, const SamplerSpec& spec,
                                            const SeatHistory& history,
                                            std::span<const std::uint32_t> mask) {
  std::vector<double> out(logits.begin(), logits.end());
  const auto& ids = history.token_ids;
  const auto forbid = [&](std::uint32_t id) { out[id] = -std::numeric_limits<double>::infinity(); };
  if (!spec.allowed_ids.empty()) {
    std::vector<bool> allowed(out.size());
    for (const auto id : spec.allowed_ids) allowed[id] = true;
    for (std::uint32_t id = 0; id < out.size(); ++id) {
      if (!allowed[id]) forbid(id);
    }
  }
  for (const auto id : spec.banned_ids) forbid(id);
  std::size_t begin = 0;
  for (const auto length : spec.banned_word_lens) {
    const auto word = spec.banned_words.subspan(begin, length);
    begin += length;
    const std::size_t before = length - 1;
    if (ids.size() >= before && std::equal(word.begin(), word.end() - 1, ids.end() - before)) {
      forbid(word[before]);
    }
  }
  if (ids.size() < spec.end_from) {
    for (const auto id : history.end_token_ids) forbid(id);
    for (const auto id : spec.stop_token_ids) forbid(id);
  }
  for (std::uint32_t id = 0; id < out.size() && !mask.empty(); ++id) {
    if ((mask[id / 32] >> (id % 32) & 1) == 0) forbid(id);
  }
  for (const TokenBias& bias : spec.bias) out[bias.token_id] += bias.value;
  for (std::uint32_t id = 0; id < out.size(); ++id) {
    double count = 0;
    bool seen = false;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] != id) continue;
      seen = true;
      count += i >= history.prompt_len ? 1 : 0;
    }
    double& l = out[id];
    if (seen) l = l > 0 ? l / spec.repetition_penalty : l * spec.repetition_penalty;
    if (count > 0) l -= spec.frequency_penalty * count + spec.presence_penalty;
  }
  return out;
}

}  // namespace inferno::ops::test
