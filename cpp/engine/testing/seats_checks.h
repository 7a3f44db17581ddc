// What seats do on a device whose bits do not depend on the batch: the bodies of the tests of both
// backends.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/testing/test_model.h"
#include "ops/score/score.h"

namespace inferno::engine::test {

constexpr std::uint32_t kVocab = 211;  // of small_shape

// Owns what StepOutput views.
struct Taken {
  std::vector<std::uint32_t> token_ids, top_starts, top_ids, score_starts, score_top_ids;
  std::vector<RowStatus> statuses;
  std::vector<float> logprobs, top_logprobs, score_logprobs, score_top_logprobs, logits;

  explicit Taken(const StepOutput& o)
      : token_ids(o.token_ids.begin(), o.token_ids.end()),
        top_starts(o.top_starts.begin(), o.top_starts.end()),
        top_ids(o.top_ids.begin(), o.top_ids.end()),
        score_starts(o.score_starts.begin(), o.score_starts.end()),
        score_top_ids(o.score_top_ids.begin(), o.score_top_ids.end()),
        statuses(o.statuses.begin(), o.statuses.end()),
        logprobs(o.logprobs.begin(), o.logprobs.end()),
        top_logprobs(o.top_logprobs.begin(), o.top_logprobs.end()),
        score_logprobs(o.score_logprobs.begin(), o.score_logprobs.end()),
        score_top_logprobs(o.score_top_logprobs.begin(), o.score_top_logprobs.end()),
        logits(o.logits.begin(), o.logits.end()) {}

  // What one row has of it, in order.
  std::vector<float> row(std::uint32_t seq) const {
    std::vector<float> all{static_cast<float>(token_ids[seq]), logprobs[seq]};
    for (std::uint32_t i = top_starts[seq]; i < top_starts[seq + 1]; ++i) {
      all.push_back(static_cast<float>(top_ids[i]));
      all.push_back(top_logprobs[i]);
    }
    return all;
  }
};

// A device with one model of random weights.
class SeatedModel {
 public:
  SeatedModel(const DeviceOptions& device, const DecoderSpec& spec, const ModelLimits& limits)
      : context_(device) {
    model_ = context_.add_model(spec, limits).model;
    context_.fill_random(model_, 3);
    context_.finish_model(model_);
  }

  void bind(std::uint32_t seat, const ops::SamplerSpec& spec,
            std::span<const std::uint32_t> token_ids, std::size_t prompt_len) {
    context_.bind_seat(model_, spec,
                       {.seat = seat,
                        .prompt_len = static_cast<std::uint32_t>(prompt_len),
                        .token_ids = token_ids});
  }
  Taken run(const std::vector<Query>& queries, const std::vector<std::uint32_t>& masks = {}) {
    return Taken(context_.run_step(model_, Step(queries, masks).batch()));
  }

 private:
  Context context_;
  std::uint32_t model_ = 0;
};

// What every rule may do at once. Owns its lists.
struct Wanting {
  std::vector<std::uint32_t> stops{3, 4}, banned{10, 11, 12}, words{60, 61, 62, 63, 64}, lens{2, 3};
  std::vector<ops::TokenBias> bias{{20, 0.5F}, {21, -100.0F}};

  ops::SamplerSpec spec(float temperature) const {
    ops::SamplerSpec spec{.temperature = temperature,
                          .top_k = 60,
                          .top_p = 0.98F,
                          .seed = 5,
                          .presence_penalty = 0.3F,
                          .frequency_penalty = 0.4F,
                          .repetition_penalty = 1.3F,
                          .end_from = 14};
    spec.stop_token_ids = stops;
    spec.banned_ids = banned;
    spec.bias = bias;
    spec.banned_words = words;
    spec.banned_word_lens = lens;
    spec.num_logprobs = 4;
    return spec;
  }
};

// Rules follow the tokens that a seat has sampled, as if it was bound afresh after each.
inline void check_rules_follow_tokens(SeatedModel& model) {
  const Wanting wanting;
  for (const float temperature : {0.0F, 1.0F}) {
    for (const bool processed : {false, true}) {
      ops::SamplerSpec spec = wanting.spec(temperature);
      spec.processed_logprobs = processed;
      auto ids = prompt(8, 1);
      model.bind(0, spec, ids, 8);
      std::vector<std::vector<float>> kept;
      Query query{.token_ids = ids, .blocks = blocks_from(0, 8)};
      for (std::uint32_t position = 8; position < 24; ++position) {
        kept.push_back(model.run({query}).row(0));
        query.token_ids = {~0U};
        query.first_position = position;
        query.feed_sampled = true;
      }
      for (const auto& expected : kept) {
        model.bind(1, spec, ids, 8);
        const Taken afresh =
            model.run({{.token_ids = ids, .blocks = blocks_from(10, 8), .seat = 1}});
        CHECK(afresh.row(0) == expected);
        ids.push_back(afresh.token_ids[0]);
      }
    }
  }
}

// Every sampler gives in a batch what it gives alone.
inline void check_alone_and_in_a_batch(SeatedModel& model) {
  const Wanting wanting;
  std::vector<ops::SamplerSpec> specs(6);
  specs[1] = wanting.spec(0);
  specs[2] = wanting.spec(1);
  specs[3] = {.temperature = 2, .seed = 9, .want_logprob = true, .processed_logprobs = true};
  specs[4] = {.num_logprobs = 20};
  specs[5] = {.temperature = 1, .top_p = 0.5F, .frequency_penalty = 2};
  const auto queries_at = [&](std::uint32_t step) {
    std::vector<Query> queries;
    for (std::uint32_t seat = 0; seat < 6; ++seat) {
      Query query{.token_ids = prompt(5, seat), .blocks = blocks_from(4 * seat, 4), .seat = seat};
      if (step > 0) {
        query.token_ids = {0};
        query.first_position = 4 + step;
        query.feed_sampled = true;
      }
      queries.push_back(query);
    }
    return queries;
  };
  const auto bind = [&](std::uint32_t seat) { model.bind(seat, specs[seat], prompt(5, seat), 5); };
  std::vector<std::vector<std::vector<float>>> alone(6);
  for (std::uint32_t seat = 0; seat < 6; ++seat) {
    bind(seat);
    for (std::uint32_t step = 0; step < 10; ++step) {
      alone[seat].push_back(model.run({queries_at(step)[seat]}).row(0));
    }
  }
  for (std::uint32_t seat = 0; seat < 6; ++seat) bind(seat);
  for (std::uint32_t step = 0; step < 10; ++step) {
    const Taken all = model.run(queries_at(step));
    for (std::uint32_t seat = 0; seat < 6; ++seat) CHECK(all.row(seat) == alone[seat][step]);
  }
}

// Log probabilities are those of the row's logits, for rows that want them.
inline void check_log_probabilities(SeatedModel& model) {
  model.bind(0, {.num_logprobs = 7}, {}, 0);
  model.bind(1, {}, {}, 0);
  model.bind(2, {.temperature = 1, .seed = 3, .want_logprob = true}, {}, 0);
  const Taken taken = model.run({{.token_ids = {1, 2}, .blocks = {0}, .seat = 0},
                                 {.token_ids = {3}, .blocks = {1}, .seat = 1},
                                 {.token_ids = {5}, .blocks = {2}, .seat = 2}});
  CHECK(taken.top_starts == std::vector<std::uint32_t>{0, 7, 7, 7});
  CHECK(taken.logprobs[1] == 0);
  for (const std::uint32_t row : {0U, 2U}) {
    std::vector<ops::TokenLogit> top(7);
    const ops::RowScore score = ops::score_row(
        std::span(taken.logits).subspan(row * kVocab, kVocab), nullptr, taken.token_ids[row], top);
    CHECK(taken.logprobs[row] == ops::logprob_of(score, score.logit));
    for (std::uint32_t i = 0; row == 0 && i < 7; ++i) {
      CHECK(taken.top_ids[i] == top[i].token_id);
      CHECK(taken.top_logprobs[i] == ops::logprob_of(score, top[i].logit));
    }
  }
}

// A prompt's scores are those of each of its beginnings, whole and in chunks.
inline void check_prompt_scores(SeatedModel& model) {
  const auto ids = prompt(40, 7);  // several times the rows of logits that there is room for
  model.bind(0, {.num_logprobs = 2}, ids, 40);
  model.bind(1, {}, ids, 40);
  std::vector<float> logprobs, top_logprobs;
  std::vector<std::uint32_t> top_ids;
  for (std::uint32_t length = 1; length < 40; ++length) {
    const std::vector<std::uint32_t> part(ids.begin(), ids.begin() + length);
    const Taken taken = model.run({{.token_ids = part, .blocks = blocks_from(0, 10), .seat = 1}});
    std::vector<ops::TokenLogit> top(2);
    const ops::RowScore score = ops::score_row(taken.logits, nullptr, ids[length], top);
    logprobs.push_back(ops::logprob_of(score, score.logit));
    for (const ops::TokenLogit& entry : top) {
      top_ids.push_back(entry.token_id);
      top_logprobs.push_back(ops::logprob_of(score, entry.logit));
    }
  }
  for (const std::uint32_t chunk : {40U, 1U, 7U, 39U}) {
    CAPTURE(chunk);
    std::vector<float> got, got_top;
    std::vector<std::uint32_t> got_ids;
    for (std::uint32_t first = 0; first < 40; first += chunk) {
      const std::uint32_t end = std::min(40U, first + chunk);
      const Taken taken = model.run({{.token_ids = {9}, .blocks = {12}, .seat = 1},
                                     {.token_ids = {ids.begin() + first, ids.begin() + end},
                                      .first_position = first,
                                      .blocks = blocks_from(0, 10),
                                      .seat = 0,
                                      .sample = end == 40,
                                      .score = true,
                                      .next_token_id = end < 40 ? ids[end] : ops::kNoToken}});
      CHECK(taken.score_starts[1] == 0);
      CHECK(taken.logits.size() == (end == 40 ? 2 : 1) * kVocab);
      got.insert(got.end(), taken.score_logprobs.begin(), taken.score_logprobs.end());
      got_top.insert(got_top.end(), taken.score_top_logprobs.begin(),
                     taken.score_top_logprobs.end());
      got_ids.insert(got_ids.end(), taken.score_top_ids.begin(), taken.score_top_ids.end());
    }
    CHECK(got == logprobs);
    CHECK(got_top == top_logprobs);
    CHECK(got_ids == top_ids);
  }
}

// A row draws from what its mask allows, and one without anything left fails alone.
inline void check_masks_and_failures(SeatedModel& model) {
  for (std::uint32_t seat = 0; seat < 3; ++seat) model.bind(seat, {.num_logprobs = 1}, {}, 0);
  std::vector<std::uint32_t> masks(2 * ops::mask_words(kVocab));
  masks[ops::mask_words(kVocab) + 100 / 32] = 1U << (100 % 32);
  const std::vector<Query> queries = {
      {.token_ids = {1}, .blocks = {0}, .seat = 0, .mask_row = 1},
      {.token_ids = {2}, .blocks = {1}, .seat = 1, .mask_row = 0},
      {.token_ids = {3}, .blocks = {2}, .seat = 2},
      {.token_ids = {4}, .blocks = {3}, .seat = 3, .sample = false}};
  const Taken taken = model.run(queries, masks);
  CHECK(taken.statuses == std::vector<RowStatus>{RowStatus::kSampled, RowStatus::kNothingLeft,
                                                 RowStatus::kSampled, RowStatus::kNone});
  CHECK(taken.token_ids[0] == 100);
  CHECK(taken.top_starts == std::vector<std::uint32_t>{0, 1, 1, 2, 2});
  CHECK(taken.row(2) == model.run({queries[2]}).row(0));
  // What such a row is fed next is of no use, but harmless.
  const Taken next = model.run(
      {{.token_ids = {0}, .first_position = 1, .blocks = {1}, .seat = 1, .feed_sampled = true}});
  CHECK(next.statuses[0] == RowStatus::kSampled);
}

}  // namespace inferno::engine::test
