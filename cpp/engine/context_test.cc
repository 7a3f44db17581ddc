// Goal: a device holds several models, gives their memory back, takes none in a step, and answers
// misuse with an error. Method: small random models; the pool's counter and a count of operator new
// around steps.
#include "engine/context.h"

#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <string>

#include "engine/base/error.h"
#include "engine/testing/test_model.h"
#include "engine/testing/test_reference.h"

namespace inferno::engine {
namespace {

using test::Query;
using test::Step;

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (...) {
    return describe_current_exception();
  }
  return "accepted";
}

std::uint32_t add_random(Context& context, std::uint64_t seed,
                         const ModelLimits& limits = test::small_limits()) {
  const auto plan = context.add_model(test::small_spec(ops::Dtype::BF16), limits);
  context.fill_random(plan.model, seed);
  context.finish_model(plan.model);
  test::bind_seats(context, plan.model, limits.max_batch_size);
  return plan.model;
}

std::vector<std::uint32_t> run(Context& context, std::uint32_t model,
                               const std::vector<Query>& queries) {
  const StepOutput output = context.run_step(model, Step(queries).batch());
  return {output.token_ids.begin(), output.token_ids.end()};
}

TEST_CASE("no step takes memory, from the pool or the heap") {
  Context context(test::small_device());
  const auto model = add_random(context, 1);
  const Step prefill(
      {{.token_ids = {1, 2, 3, 4, 5}, .blocks = {0, 1}},
       {.token_ids = {9, 3}, .blocks = {2}, .seat = 1, .sample = false, .score = true}});
  const std::uint32_t all[] = {~0U, ~0U, ~0U, ~0U, ~0U, ~0U, ~0U};  // 211 ids
  const Step decode(
      {{.token_ids = {0}, .first_position = 5, .blocks = {0, 1}, .feed_sampled = true},
       {.token_ids = {8}, .first_position = 2, .blocks = {2}, .seat = 1, .mask_row = 0}},
      {std::begin(all), std::end(all)});
  context.bind_seat(model,
                    {.temperature = 1,
                     .top_k = 9,
                     .top_p = 0.9F,
                     .min_p = 0.01F,
                     .presence_penalty = 0.5F,
                     .repetition_penalty = 1.2F,
                     .num_logprobs = 20},
                    {.seat = 0});
  const std::uint64_t allocations = context.memory_stats().num_allocations;
  const std::uint64_t before = test::num_news();
  for (int i = 0; i < 20; ++i) {
    context.run_step(model, prefill.batch(false));
    context.run_step(model, decode.batch(true));
  }
  CHECK(test::num_news() == before);
  CHECK(context.memory_stats().num_allocations == allocations);
}

TEST_CASE("a fed token is the seat's last sampled one") {
  Context context(test::small_device());
  const auto model = add_random(context, 2);
  const auto first = run(context, model,
                         {{.token_ids = {1, 2, 3}, .blocks = {0, 1}, .seat = 4},
                          {.token_ids = {7, 8}, .blocks = {2, 3}, .seat = 1}});
  const auto told =
      run(context, model,
          {{.token_ids = {first[1]}, .first_position = 2, .blocks = {2, 3}, .seat = 1},
           {.token_ids = {first[0]}, .first_position = 3, .blocks = {0, 1}, .seat = 4}});
  run(context, model,
      {{.token_ids = {1, 2, 3}, .blocks = {0, 1}, .seat = 4},
       {.token_ids = {7, 8}, .blocks = {2, 3}, .seat = 1}});
  // Another order, and a token id that may not be read.
  const auto fed = run(
      context, model,
      {{.token_ids = {~0U}, .first_position = 2, .blocks = {2, 3}, .seat = 1, .feed_sampled = true},
       {.token_ids = {~0U},
        .first_position = 3,
        .blocks = {0, 1},
        .seat = 4,
        .feed_sampled = true}});
  CHECK(fed == told);
  CHECK(error_of([&] {
          run(context, model,
              {{.token_ids = {0},
                .first_position = 3,
                .blocks = {5},
                .seat = 0,
                .feed_sampled = true}});
        }).starts_with("invalid_batch: feed_sampled[0]: nothing was sampled for seat 0"));
}

TEST_CASE("only rows that sample give tokens and logits") {
  Context context(test::small_device());
  const auto model = add_random(context, 3);
  const Step step({{.token_ids = {1}, .blocks = {0}, .seat = 0, .sample = false},
                   {.token_ids = {2}, .blocks = {1}, .seat = 1},
                   {.token_ids = {3}, .blocks = {2}, .seat = 2, .sample = false}});
  const StepOutput output = context.run_step(model, step.batch());
  CHECK(output.token_ids.size() == 3);
  CHECK(output.token_ids[0] == 0);
  CHECK(output.token_ids[2] == 0);
  CHECK(output.logits.size() == 211);
  CHECK(context.run_step(model, step.batch(false)).logits.empty());
  const Step none({{.token_ids = {1}, .blocks = {0}, .sample = false}});
  CHECK(context.run_step(model, none.batch()).token_ids.size() == 1);
}

TEST_CASE("end tokens are held back while a row asks for it") {
  Context context(test::small_device());
  ModelLimits limits = test::small_limits();
  limits.end_token_ids.clear();
  const auto probe = add_random(context, 4, limits);
  const std::vector<Query> greedy = {{.token_ids = {5, 6}, .blocks = {0}}};
  const std::uint32_t best = run(context, probe, greedy)[0];
  limits.end_token_ids = {best};
  const auto model = add_random(context, 4, limits);
  CHECK(run(context, model, greedy)[0] == best);
  context.bind_seat(model, {.end_from = 3}, {.seat = 0});  // the index after the prompt is 2
  CHECK(run(context, model, greedy)[0] != best);
  context.bind_seat(model, {.end_from = 2}, {.seat = 0});
  CHECK(run(context, model, greedy)[0] == best);
}

TEST_CASE("models do not disturb each other, and a removed one leaves no trace in the pool") {
  Context context(test::small_device());
  const auto a = add_random(context, 5);
  const std::uint64_t used = context.memory_stats().used_bytes;
  const std::vector<Query> queries = {{.token_ids = {1, 2, 3}, .blocks = {0}}};
  const auto alone = run(context, a, queries);
  const auto b = add_random(context, 6);
  CHECK(a != b);
  run(context, b, {{.token_ids = {4, 5, 6}, .blocks = {0}}});
  const std::vector<Query> decode = {
      {.token_ids = {9}, .first_position = 3, .blocks = {0}, .feed_sampled = true}};
  CHECK(run(context, a, decode).size() == 1);
  context.remove_model(b);
  CHECK(context.memory_stats().used_bytes == used);
  CHECK(run(context, a, queries) == alone);
  CHECK(error_of([&] { run(context, b, queries); }).starts_with("invalid_batch: model: "));
  CHECK(error_of([&] { context.remove_model(b); }).starts_with("other: model: "));
  CHECK(error_of([&] { context.finish_model(77); }).starts_with("other: model: "));
  CHECK(add_random(context, 7) > b);
  context.remove_model(a);
}

TEST_CASE("the plan is what required_bytes said, and fits a pool of that size") {
  const LlamaShape shape = test::small_shape(ops::Dtype::F16);
  ModelLimits limits = test::small_limits();
  const MemoryNeed need = required_bytes(test::small_device(), spec_of(shape), limits);
  CHECK(need.kv_bytes_per_block == 3 * 2 * 2 * 12 * 4 * 2);
  limits.kv_bytes = 100 * need.kv_bytes_per_block + 8192;
  Context context(
      {2, ops::Isa::Portable, need.weight_bytes + need.workspace_bytes + limits.kv_bytes});
  const ModelPlan plan = context.add_model(spec_of(shape), limits);
  CHECK(plan.num_blocks >= 100);
  CHECK(plan.weight_bytes == need.weight_bytes);
  CHECK(plan.workspace_bytes == need.workspace_bytes);
  CHECK(plan.kv_bytes <= limits.kv_bytes);
  CHECK(context.memory_stats().used_bytes ==
        plan.weight_bytes + plan.workspace_bytes + plan.kv_bytes);
  context.fill_random(plan.model, 1);
  context.finish_model(plan.model);
  // The last block and the last seat are the model's too.
  test::bind_seats(context, plan.model, limits.max_batch_size);
  context.run_step(plan.model,
                   Step({{.token_ids = {1}, .blocks = {plan.num_blocks - 1}, .seat = 5}}).batch());
}

TEST_CASE("too little memory is out_of_memory, and nothing stays taken") {
  const LlamaShape shape = test::small_shape(ops::Dtype::F32);
  ModelLimits limits = test::small_limits();
  const MemoryNeed need = required_bytes(test::small_device(), spec_of(shape), limits);
  Context context({2, ops::Isa::Portable, need.weight_bytes + 1000});
  CHECK(error_of([&] {
          context.add_model(spec_of(shape), limits);
        }).starts_with("out_of_memory: need "));
  CHECK(context.memory_stats().used_bytes == 0);
  limits.kv_bytes = 100;
  CHECK(error_of([&] {
          context.add_model(spec_of(shape), limits);
        }).ends_with("have 100 (kv_bytes, for one block)"));
  CHECK(context.memory_stats().used_bytes == 0);
  CHECK(error_of([&] {
          Context(DeviceOptions{1, ops::Isa::Portable, 1ULL << 60});
        }).starts_with("out_of_memory: need "));
}

TEST_CASE("misuse is an error") {
  Context context(test::small_device());
  const ModelPlan plan = context.add_model(test::small_spec(ops::Dtype::F32), test::small_limits());
  const Step step({{.token_ids = {1}, .blocks = {0}}});
  CHECK(error_of([&] {
          context.run_step(plan.model, step.batch());
        }).starts_with("invalid_batch: model: its weights are not finished"));
  CHECK(error_of([&] { context.finish_model(plan.model); }).starts_with("other: "));
  context.fill_random(plan.model, 1);
  context.finish_model(plan.model);
  CHECK(error_of([&] {
          context.run_step(plan.model, step.batch());
        }).starts_with("invalid_batch: seats[0]: nothing is bound to seat 0"));
  CHECK(error_of([&] { context.finish_model(plan.model); }).starts_with("other: "));
  CHECK(error_of([&] { context.fill_random(plan.model, 1); }).starts_with("other: "));
  CHECK(error_of([&] { context.set_tensor(plan.model, {}, {}); }).starts_with("other: "));
  LlamaShape bad = test::small_shape(ops::Dtype::F32);
  bad.num_kv_heads = 4;
  CHECK(error_of([&] {
          context.add_model(spec_of(bad), test::small_limits());
        }).starts_with("other: layers[0].num_kv_heads"));
  CHECK(error_of([] {
          Context(DeviceOptions{0, ops::Isa::Portable, 1024});
        }).starts_with("other: num_threads"));
  CHECK(error_of([] {
          Context(DeviceOptions{100000, ops::Isa::Portable, 1024});
        }).starts_with("other: num_threads"));
  for (const ops::Isa isa : ops::kIsas) {
    if (!ops::isa_available(isa)) {
      CHECK(error_of([&] { Context(DeviceOptions{1, isa, 1024}); }).starts_with("other: isa"));
    }
  }
}

TEST_CASE("weights that are no numbers fail the warm-up, not a request") {
  Context context(test::small_device());
  const DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  const ModelPlan plan = context.add_model(spec, test::small_limits());
  test::Checkpoint checkpoint(test::small_shape(ops::Dtype::F32));
  for (double& value : checkpoint.tensors.at("model.norm.weight").values) {
    value = std::numeric_limits<double>::quiet_NaN();
  }
  checkpoint.load(context, plan.model);
  CHECK(error_of([&] { context.finish_model(plan.model); }) ==
        "other: sequence 0: logits that are no numbers");
}

}  // namespace
}  // namespace inferno::engine
