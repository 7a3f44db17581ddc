// Goal: a row's logits become what the definition says, under each rule alone and all together, and
// the state follows the sampled tokens. Method: the definition beside it in double; values that
// `transformers` gave.
#include "ops/process_logits/process_logits.h"

#include <doctest/doctest.h>

#include <limits>
#include <string>

#include "ops/sample/sampler_test_support.h"

namespace inferno::ops::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// One bound seat and what its next row becomes.
struct Seat {
  std::uint32_t vocab_size;
  std::uint32_t prompt_len;
  std::vector<std::uint32_t> token_ids;
  std::vector<std::uint32_t> ends;
  OwnedStates states{3, vocab_size};
  SeatSampler sampler{};

  SeatHistory history() const { return {1, prompt_len, token_ids, ends}; }
  void bind(const SamplerSpec& spec) {
    check_sampler(spec, vocab_size);
    sampler = states.bind(spec, history());
  }
  LogitRules rules(std::uint32_t mask_row = kNoMaskRow) const {
    return sampler.rules_at(static_cast<std::uint32_t>(token_ids.size()), mask_row);
  }
  std::vector<float> process(std::span<const float> logits,
                             std::span<const std::uint32_t> masks = {},
                             std::uint32_t mask_row = kNoMaskRow) {
    std::vector<float> out(logits.size());
    process_logits(logits, rules(mask_row), states.view(), masks, out);
    return out;
  }
  void sample(std::uint32_t token_id) {
    note_sampled(rules(), states.view(), token_id);
    token_ids.push_back(token_id);
  }
};

void check_close(std::span<const float> got, std::span<const double> expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t id = 0; id < got.size(); ++id) {
    CAPTURE(id);
    if (std::isinf(expected[id])) {
      CHECK(got[id] == -kInf);
    } else {
      CHECK(std::abs(got[id] - expected[id]) <= 1e-5 * (1 + std::abs(expected[id])));
    }
  }
}

// SuppressTokens, NoBadWords, MinNewTokensLength, SequenceBias and RepetitionPenalty of
// transformers 5.17 in this order, then the frequency and presence terms of vLLM's apply_penalties.
TEST_CASE("gives what transformers and vLLM give") {
  const std::vector<float> logits = {1.5F, -0.75F, 0.0F, 2.25F, -3.0F, 0.5F,
                                     4.0F, -1.25F, 3.5F, 0.25F, -0.5F, 2.0F};
  Seat seat{12, 5, {3, 7, 4, 7, 0, 8, 1, 8, 8, 9}, {6}};
  OwnedSpec spec;
  spec.banned_ids = {10};
  spec.banned_words = {8, 9, 3, 9, 5, 9, 9, 0, 1, 2};
  spec.banned_word_lens = {3, 2, 3, 2};
  spec.scalars.end_from = 11;
  spec.stop_token_ids = {11};
  spec.bias = {{2, -1.5F}, {8, 2.0F}, {7, 0.5F}, {6, 50.0F}};
  spec.scalars.repetition_penalty = 1.3F;
  seat.bind(spec.view());
  check_close(seat.process(logits),
              std::vector<double>{1.1538461446762085, -0.9749999642372131, -1.5, -kInf,
                                  -3.8999998569488525, -kInf, -kInf, -0.9749999642372131,
                                  4.230769157409668, 0.19230769574642181, -kInf, -kInf});
  spec.scalars.frequency_penalty = 0.4F;
  spec.scalars.presence_penalty = 0.7F;
  seat.bind(spec.view());
  check_close(seat.process(logits),
              std::vector<double>{1.1538461446762085, -2.075000047683716, -1.5, -kInf,
                                  -3.8999998569488525, -kInf, -kInf, -0.9749999642372131,
                                  2.3307690620422363, -0.9076923131942749, -kInf, -kInf});
}

TEST_CASE("every rule alone gives the definition, token after token") {
  Random random(1);
  constexpr std::uint32_t kVocab = 77;
  std::vector<std::pair<std::string, OwnedSpec>> cases(9);
  cases[0] = {"repetition", {.scalars = {.repetition_penalty = 1.7F}}};
  cases[1] = {"frequency", {.scalars = {.frequency_penalty = 0.3F}}};
  cases[2] = {"presence", {.scalars = {.presence_penalty = -0.9F}}};
  cases[3] = {"bias", {.bias = {{0, 5}, {76, -100}, {40, 0.25F}}}};
  cases[4] = {"allowed", {.allowed_ids = {1, 2, 31, 32, 76}}};
  cases[5] = {"banned", {.banned_ids = {0, 31, 32, 63, 76}}};
  cases[6] = {"end_from", {.scalars = {.end_from = 14}}};
  cases[7] = {"stop ids", {.scalars = {.end_from = 14}, .stop_token_ids = {64, 3}}};
  cases[8] = {"words", {.banned_words = {5, 6, 6, 5}, .banned_word_lens = {2, 2}}};
  for (const auto& [name, spec] : cases) {
    CAPTURE(name);
    Seat seat{kVocab, 8, {9, 9, 1, 5, 6, 70, 2, 5}, {31, 64}};
    seat.bind(spec.view());
    for (const std::uint32_t next : {6U, 5U, 5U, 6U, 6U, 30U, 5U, 6U}) {
      const auto logits = random.normals(kVocab);
      check_close(seat.process(logits), reference_logits(logits, spec.view(), seat.history(), {}));
      seat.sample(next);
    }
  }
}

TEST_CASE("all rules together give the definition, bound afresh or kept from token to token") {
  Random random(2);
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    const std::uint32_t vocab = random.integer(1, 3) == 1 ? random.integer(1, 40) : 333;
    const std::uint32_t prompt_len = random.integer(1, 40);
    Seat seat{vocab, prompt_len, random_ids(random, prompt_len, vocab),
              random_ids(random, random.integer(0, 3), vocab)};
    const OwnedSpec spec = random_spec(random, seat.token_ids, vocab);
    seat.bind(spec.view());
    const auto masks = random_ids(random, 2 * static_cast<std::uint32_t>(mask_words(vocab)), ~0U);
    for (int token = 0; token < 20; ++token) {
      const auto logits = random.normals(vocab);
      const std::uint32_t mask_row = random.integer(0, 2) == 0 ? 1 : kNoMaskRow;
      const auto mask = mask_row == 1 ? std::span(masks).subspan(mask_words(vocab))
                                      : std::span<const std::uint32_t>();
      const auto kept = seat.process(logits, masks, mask_row);
      check_close(kept, reference_logits(logits, spec.view(), seat.history(), mask));
      Seat afresh{vocab, prompt_len, seat.token_ids, seat.ends};  // as after a pre-emption
      afresh.bind(spec.view());
      CHECK(same_bits(afresh.process(logits, masks, mask_row), kept));
      seat.sample(random.integer(0, vocab - 1));
    }
  }
}

TEST_CASE("no rules change nothing, and say so") {
  Seat seat{5, 1, {2}, {4}};
  seat.bind({});
  CHECK(!seat.rules().change_logits());
  CHECK(!seat.rules().change_state());
  const std::vector<float> logits = {1, -0.0F, -kInf, 3, 2};
  CHECK(same_bits(seat.process(logits), logits));
  CHECK(seat.rules(0).change_logits());
}

TEST_CASE("what the sampler refuses stays, and what overflows is the largest float") {
  OwnedSpec spec;
  spec.scalars.repetition_penalty = 1e-30F;
  spec.scalars.frequency_penalty = -kMaxPenalty;
  spec.bias = {{3, 3e38F}, {4, -3e38F}, {0, 1}};
  spec.banned_ids = {0, 1};
  Seat seat{7, 3, {0, 1, 2, 5, 5}, {}};
  seat.bind(spec.view());
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> logits = {std::nanf(""), kInf, 3e20F, 3e38F, -3e38F, 3e38F, -kInf};
  const auto out = seat.process(logits);
  CHECK(std::isnan(out[0]));
  CHECK(out[1] == kInf);
  CHECK(out[2] == kMax);
  CHECK(out[3] == kMax);
  CHECK(out[4] == -kInf);
  CHECK(out[5] == kMax);
  CHECK(out[6] == -kInf);
}

TEST_CASE("counts stop at their largest") {
  std::vector<std::uint16_t> counts(8);
  std::vector<std::uint32_t> ids(40000, 3);
  ids[0] = 1;
  count_tokens(counts, ids, 2);
  CHECK(counts[1] == kInPrompt);
  CHECK(counts[3] == (kInPrompt | kMaxCount));
  CHECK(counts[0] == 0);
}

}  // namespace
}  // namespace inferno::ops::test
