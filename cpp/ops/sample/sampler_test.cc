// Goal: what a seat cannot hold is refused by name, and a bound seat says what each row gets.
// Method: one good spec, spoilt in one place at a time; rows of a seat over its positions.
#include "ops/sample/sampler.h"

#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "ops/sample/sampler_test_support.h"

namespace inferno::ops::test {
namespace {

constexpr std::uint32_t kVocab = 100;

std::string error_of(const std::function<void(OwnedSpec&)>& spoil) {
  OwnedSpec spec;
  spec.banned_words = {1, 2, 3, 4, 5};
  spec.banned_word_lens = {2, 3};
  spec.bias = {{99, 1}, {0, -100}};
  spec.allowed_ids = spec.banned_ids = spec.stop_token_ids = {0, 99, 99};
  spoil(spec);
  try {
    check_sampler(spec.view(), kVocab);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("accepts a spec that a seat can hold") {
  CHECK(error_of([](OwnedSpec&) {}) == "accepted");
  CHECK(error_of([](OwnedSpec& s) { s = {}; }) == "accepted");
  CHECK(error_of([](OwnedSpec& s) { s.scalars.num_logprobs = 20; }) == "accepted");
}

TEST_CASE("names what a seat cannot hold") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<std::function<void(OwnedSpec&)>, std::string>> cases = {
      {[](OwnedSpec& s) { s.scalars.temperature = -1; }, "temperature: got -1"},
      {[](OwnedSpec& s) { s.scalars.temperature = kInf; }, "temperature"},
      {[](OwnedSpec& s) { s.scalars.top_p = 0; }, "top_p"},
      {[](OwnedSpec& s) { s.scalars.top_p = kNan; }, "top_p"},
      {[](OwnedSpec& s) { s.scalars.min_p = 1.5F; }, "min_p"},
      {[](OwnedSpec& s) { s.scalars.presence_penalty = kNan; }, "presence_penalty"},
      {[](OwnedSpec& s) { s.scalars.frequency_penalty = -kInf; }, "frequency_penalty"},
      {[](OwnedSpec& s) { s.scalars.repetition_penalty = 0; }, "repetition_penalty"},
      {[](OwnedSpec& s) { s.scalars.repetition_penalty = kNan; }, "repetition_penalty"},
      {[](OwnedSpec& s) { s.scalars.num_logprobs = 21; }, "num_logprobs: expected at most 20"},
      {[](OwnedSpec& s) { s.stop_token_ids = {100}; }, "stop_token_ids: expected ids less than"},
      {[](OwnedSpec& s) { s.allowed_ids = {100}; }, "allowed_ids"},
      {[](OwnedSpec& s) { s.banned_ids = {~0U}; }, "banned_ids"},
      {[](OwnedSpec& s) {
         s.bias = {{100, 0}};
       },
       "bias: expected ids less than 100, got 100"},
      {[](OwnedSpec& s) {
         s.bias = {{5, 0}, {6, 0}, {5, 1}};
       },
       "bias: token 5 is given twice"},
      {[](OwnedSpec& s) {
         s.bias = {{5, kNan}};
       },
       "bias: got"},
      {[](OwnedSpec& s) { s.bias.resize(1025); }, "bias: expected at most 1024"},
      {[](OwnedSpec& s) { s.banned_words[4] = 100; }, "banned_words: expected ids"},
      {[](OwnedSpec& s) {
         s.banned_word_lens = {1, 4};
       },
       "banned_word_lens: expected 2 to 16"},
      {[](OwnedSpec& s) { s.banned_word_lens = {17}; }, "banned_word_lens: expected 2 to 16"},
      {[](OwnedSpec& s) {
         s.banned_word_lens = {2, 2};
       },
       "banned_words: expected the 4 tokens"},
      {[](OwnedSpec& s) { s.banned_words.resize(2049); }, "banned_words: expected at most 2048"},
      {[](OwnedSpec& s) { s.banned_word_lens.resize(513, 2); }, "banned_word_lens: expected at"},
  };
  for (const auto& [spoil, expected] : cases) {
    const std::string error = error_of(spoil);
    CHECK_MESSAGE(error.starts_with("invalid_batch: sampler." + expected),
                  expected << " in " << error);
  }
}

TEST_CASE("end tokens are held back up to an index of the sequence, and not after it") {
  OwnedStates states(1, kVocab);
  const std::vector<std::uint32_t> ids = {1, 2, 3};
  OwnedSpec spec;
  spec.scalars.end_from = 5;
  const SeatSampler seat = states.bind(spec.view(), {0, 3, ids, {}});
  CHECK(seat.rules_at(3, kNoMaskRow).seat_mask == SeatMask::kBeforeEnd);
  CHECK(seat.rules_at(4, kNoMaskRow).seat_mask == SeatMask::kBeforeEnd);
  CHECK(seat.rules_at(5, kNoMaskRow).seat_mask == SeatMask::kNone);
  spec.banned_ids = {7};
  const SeatSampler banned = states.bind(spec.view(), {0, 3, ids, {}});
  CHECK(banned.rules_at(4, kNoMaskRow).seat_mask == SeatMask::kBeforeEnd);
  CHECK(banned.rules_at(5, kNoMaskRow).seat_mask == SeatMask::kAllowed);
  spec = {};
  spec.scalars.end_from = 3;  // the next token may be one
  CHECK(!states.bind(spec.view(), {0, 3, ids, {}}).rules_at(2, kNoMaskRow).change_logits());
}

TEST_CASE("a seat says what a row draws with and which log probabilities it wants") {
  OwnedStates states(2, kVocab);
  OwnedSpec spec;
  spec.scalars = {.temperature = 0.5F, .top_k = 3, .top_p = 0.9F, .min_p = 0.1F, .seed = 77};
  const SeatSampler seat = states.bind(spec.view(), {1, 0, {}, {}});
  const SampleParams params = seat.params_at(12);
  CHECK(params.temperature == 0.5F);
  CHECK(params.top_k == 3);
  CHECK(params.top_p == 0.9F);
  CHECK(params.min_p == 0.1F);
  CHECK(params.seed == 77);
  CHECK(params.position == 12);
  CHECK(!seat.logprobs.wanted);
  CHECK(seat.rules_at(12, 4).mask_row == 4);
  CHECK(seat.rules_at(12, 4).seat == 1);
  spec.scalars.num_logprobs = 2;
  CHECK(states.bind(spec.view(), {1, 0, {}, {}}).logprobs.wanted);
  spec.scalars = {.want_logprob = true, .processed_logprobs = true};
  const SeatSampler wanting = states.bind(spec.view(), {1, 0, {}, {}});
  CHECK(wanting.logprobs.wanted);
  CHECK(wanting.logprobs.processed);
  CHECK(wanting.logprobs.num_top == 0);
}

}  // namespace
}  // namespace inferno::ops::test
