// Goal: seats do on a GPU what they do on the CPU. Method: the checks of seats_checks.h in
// deterministic mode, with two steps under way, and tokens fed on the device.
#include <doctest/doctest.h>

#include "engine/spec/llama_spec.h"
#include "engine/testing/seats_checks.h"

namespace inferno::engine {
namespace {

using test::SeatedModel;

DecoderSpec gpu_spec() {
  LlamaShape shape = test::small_shape(ops::Dtype::BF16);
  shape.intermediate_size = 104;
  shape.head_dim = 64;
  return spec_of(shape);
}

constexpr DeviceOptions kDevice{
    .num_threads = 2, .pool_bytes = 256 << 20, .backend = BackendKind::Cuda, .deterministic = true};

ModelLimits gpu_limits() {
  return {.block_size = 16,
          .kv_bytes = 8 << 20,
          .max_batch_size = 6,
          .max_step_tokens = 64,
          .max_seq_len = 256,
          .end_token_ids = {7}};
}

SeatedModel gpu_model() { return {kDevice, gpu_spec(), gpu_limits()}; }

TEST_CASE(
    "GPU: rules follow the tokens that a seat has sampled, as if it was bound afresh after each") {
  SeatedModel model = gpu_model();
  test::check_rules_follow_tokens(model);
}

TEST_CASE("GPU: every sampler gives in a batch what it gives alone") {
  SeatedModel model = gpu_model();
  test::check_alone_and_in_a_batch(model);
}

TEST_CASE("GPU: log probabilities are those of the row's logits, for rows that want them") {
  SeatedModel model = gpu_model();
  test::check_log_probabilities(model);
}

TEST_CASE("GPU: a prompt's scores are those of each of its beginnings, whole and in chunks") {
  SeatedModel model = gpu_model();
  test::check_prompt_scores(model);
}

TEST_CASE("GPU: a row draws from what its mask allows, and one without anything left fails alone") {
  SeatedModel model = gpu_model();
  test::check_masks_and_failures(model);
}

TEST_CASE("GPU: a seat that is bound anew while its step is under way leaves that step as it was") {
  Context context(kDevice);
  const auto model = context.add_model(gpu_spec(), gpu_limits()).model;
  context.fill_random(model, 3);
  context.finish_model(model);
  const auto ids = test::prompt(20, 1);
  const ops::SamplerSpec first{
      .temperature = 1, .seed = 4, .repetition_penalty = 1.5F, .num_logprobs = 3};
  const ops::SamplerSpec second{.frequency_penalty = 1, .want_logprob = true};
  const test::Step step({{.token_ids = ids, .blocks = test::blocks_from(0, 4)}});
  const auto bind = [&](const ops::SamplerSpec& spec) {
    context.bind_seat(model, spec, {.seat = 0, .prompt_len = 10, .token_ids = ids});
  };
  std::vector<std::vector<float>> expected;
  for (const auto& spec : {first, second}) {
    bind(spec);
    expected.push_back(test::Taken(context.run_step(model, step.batch(false))).row(0));
  }
  for (int round = 0; round < 10; ++round) {
    bind(first);
    context.submit_step(model, step.batch(false));
    bind(second);
    context.submit_step(model, step.batch(false));
    CHECK(test::Taken(context.take_step()).row(0) == expected[0]);
    CHECK(test::Taken(context.take_step()).row(0) == expected[1]);
  }
}

}  // namespace
}  // namespace inferno::engine
