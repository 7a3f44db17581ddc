// Goal: a seat's sampler does what its sequence wants in the engine as in the ops: rules follow the
// tokens that the seat has sampled, log probabilities are those of the logits, alone as in a batch,
// and one row's failure is its own. Method: small random models on the CPU; the same sequence bound
// afresh after each token, alone and in company; the ops on the logits that a step gives out.
#include <doctest/doctest.h>

#include <limits>
#include <string>

#include "engine/base/error.h"
#include "engine/testing/seats_checks.h"
#include "engine/testing/test_reference.h"

namespace inferno::engine {
namespace {

using test::kVocab;
using test::prompt;
using test::SeatedModel;

SeatedModel small_model() {
  return {test::small_device(), test::small_spec(ops::Dtype::BF16), test::small_limits()};
}

TEST_CASE("rules follow the tokens that a seat has sampled, as if it was bound afresh after each") {
  SeatedModel model = small_model();
  test::check_rules_follow_tokens(model);
}

TEST_CASE("every sampler gives in a batch what it gives alone") {
  SeatedModel model = small_model();
  test::check_alone_and_in_a_batch(model);
}

TEST_CASE("log probabilities are those of the row's logits, for rows that want them") {
  SeatedModel model = small_model();
  test::check_log_probabilities(model);
}

TEST_CASE("a prompt's scores are those of each of its beginnings, whole and in chunks") {
  SeatedModel model = small_model();
  test::check_prompt_scores(model);
}

TEST_CASE("a row draws from what its mask allows, and one without anything left fails alone") {
  SeatedModel model = small_model();
  test::check_masks_and_failures(model);
}

TEST_CASE("a row whose logits are no numbers fails alone") {
  test::Checkpoint checkpoint(test::small_shape(ops::Dtype::F32));
  // Token 5 is looked up as no number.
  auto& embedding = checkpoint.tensors.at("model.embed_tokens.weight").values;
  std::fill_n(embedding.begin() + 5 * 72, 72, std::numeric_limits<double>::quiet_NaN());
  Context context(test::small_device());
  const auto model = context.add_model(spec_of(checkpoint.shape), test::small_limits()).model;
  checkpoint.load(context, model);
  context.finish_model(model);
  test::bind_seats(context, model, 3, {.want_logprob = true});
  const std::vector<test::Query> queries = {{.token_ids = {1, 2}, .blocks = {0}, .seat = 0},
                                            {.token_ids = {5, 2}, .blocks = {1}, .seat = 1},
                                            {.token_ids = {3}, .blocks = {2}, .seat = 2}};
  const test::Taken all(context.run_step(model, test::Step(queries).batch()));
  CHECK(all.statuses ==
        std::vector<RowStatus>{RowStatus::kSampled, RowStatus::kNotANumber, RowStatus::kSampled});
  const test::Taken alone(context.run_step(model, test::Step({queries[2]}).batch()));
  CHECK(alone.row(0) == all.row(2));
}

TEST_CASE("a binding that makes no sense is refused by name and changes nothing") {
  SeatedModel model = small_model();
  model.bind(0, {}, {}, 0);
  const auto before = model.run({{.token_ids = {1}, .blocks = {0}}}).row(0);
  const auto error_of = [&](std::uint32_t seat, const ops::SamplerSpec& spec,
                            std::vector<std::uint32_t> ids, std::size_t prompt_len) {
    try {
      model.bind(seat, spec, ids, prompt_len);
    } catch (...) {
      return describe_current_exception();
    }
    return std::string("accepted");
  };
  CHECK(
      error_of(6, {}, {}, 0).starts_with("invalid_batch: bind_seat: expected a seat less than 6"));
  CHECK(error_of(0, {}, {kVocab}, 1).starts_with("invalid_batch: bind_seat: expected token ids"));
  CHECK(error_of(0, {}, {1}, 2).starts_with("invalid_batch: bind_seat: expected a prompt"));
  CHECK(
      error_of(0, {}, prompt(65, 1), 2).starts_with("invalid_batch: bind_seat: expected a prompt"));
  CHECK(error_of(0, {.top_p = 2}, {}, 0).starts_with("invalid_batch: sampler.top_p: got 2"));
  CHECK(model.run({{.token_ids = {1}, .blocks = {0}}}).row(0) == before);
}

}  // namespace
}  // namespace inferno::engine
