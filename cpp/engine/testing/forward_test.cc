// Goal: the forward pass computes the Llama decoder, and what other families add to it, and a
// sequence's logits have the same bits however it is run. Method: a plain reference in double that
// knows no cache, no batch and no packing; then the same prompt alone, in a batch, in chunks, over
// shared and scattered blocks, after recompute, on memory full of rubbish.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "engine/base/error.h"
#include "engine/testing/test_model.h"
#include "engine/testing/test_reference.h"

namespace inferno::engine {
namespace {

using test::Checkpoint;
using test::Matrix;
using test::prompt;
using test::Query;
using test::Reference;
using test::same_bits;
using test::Step;

struct Loaded {
  Context context;
  std::uint32_t model;
  ModelPlan plan;

  Loaded(const Checkpoint& checkpoint, const DeviceOptions& device,
         const ModelLimits& limits = test::small_limits())
      : context(device) {
    plan = context.add_model(checkpoint.spec(), limits);
    model = plan.model;
    checkpoint.load(context, model);
    context.finish_model(model);
    test::bind_seats(context, model, limits.max_batch_size);
  }

  std::vector<float> run(const std::vector<Query>& queries) {
    const StepOutput output = context.run_step(model, Step(queries).batch());
    tokens.assign(output.token_ids.begin(), output.token_ids.end());
    return {output.logits.begin(), output.logits.end()};
  }

  std::vector<std::uint32_t> tokens;  // of the last run
};

void check_near(const std::vector<float>& got, const Matrix& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  double scale = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - expected[i]));
    scale = std::max(scale, std::abs(expected[i]));
  }
  CHECK_MESSAGE(worst <= tolerance * scale, "worst " << worst << " of " << scale);
}

std::vector<LlamaShape> family() {
  std::vector<LlamaShape> shapes(4, test::small_shape(ops::Dtype::F32));
  shapes[1].tie_word_embeddings = true;
  shapes[2].attention_bias = true;
  shapes[2].mlp_bias = true;
  shapes[3].num_kv_heads = shapes[3].num_heads;
  return shapes;
}

TEST_CASE("logits agree with the reference for every member of the family and every dtype") {
  // Relative to the largest logit; 16-bit types round K and V, and bf16 kernels round activations.
  const std::map<ops::Dtype, double> tolerance = {
      {ops::Dtype::F32, 2e-5}, {ops::Dtype::F16, 5e-3}, {ops::Dtype::BF16, 4e-2}};
  for (const LlamaShape& base : family()) {
    for (const auto& [dtype, error] : tolerance) {
      LlamaShape shape = base;
      shape.dtype = dtype;
      const Checkpoint checkpoint(shape);
      const auto ids = prompt(21, 1);
      const Matrix expected = Reference{checkpoint}.logits(ids);
      for (const ops::Isa isa : test::available_isas()) {
        const std::string name = std::string(ops::isa_name(isa)) + " " + ops::dtype_name(dtype);
        CAPTURE(name);
        Loaded loaded(checkpoint, test::small_device(isa));
        check_near(loaded.run({{.token_ids = ids, .blocks = test::blocks_from(3, 6)}}), expected,
                   error);
      }
    }
  }
}

// Gates, routers of both kinds, an expert that all tokens share with its gate and without, its sum
// with the others under a norm and without.
std::vector<test::Parts> parts() {
  MlpSpec experts{.kind = MlpKind::Experts, .intermediate_size = 52};
  experts.num_experts = 7;
  experts.experts_per_token = 3;
  MlpSpec gated = experts;
  gated.shared = {.intermediate_size = 140, .has_gate = true};
  MlpSpec sigmoids = experts;
  sigmoids.router_kind = ops::RouterKind::Sigmoid;
  sigmoids.score_correction = sigmoids.renormalise = true;
  sigmoids.routed_scale = 2.5F;
  sigmoids.shared.intermediate_size = 52;
  MlpSpec plain_sigmoids = experts;
  plain_sigmoids.router_kind = ops::RouterKind::Sigmoid;
  return {{.ordered = true},
          {.output_gate = true},
          {.experts = experts},
          {.residual_scale = 0.5F, .experts = gated},
          {.post_norms = true, .experts = gated},
          {.output_gate = true, .experts = sigmoids},
          {.output_gate = true, .post_norms = true, .residual_scale = 0.5F, .experts = sigmoids},
          {.experts = plain_sigmoids}};
}

TEST_CASE("orders of columns, output gates, routers and shared experts agree with the reference") {
  for (const test::Parts& each : parts()) {
    const Checkpoint checkpoint(test::small_shape(ops::Dtype::F32), each);
    const auto ids = prompt(21, 1);
    const Matrix expected = Reference{checkpoint}.logits(ids);
    for (const ops::Isa isa : test::available_isas()) {
      CAPTURE(std::string(ops::isa_name(isa)));
      Loaded loaded(checkpoint, test::small_device(isa));
      check_near(loaded.run({{.token_ids = ids, .blocks = test::blocks_from(3, 6)}}), expected,
                 2e-5);
    }
  }
}

TEST_CASE("under output gates, and through shared experts, a sequence has the same bits") {
  const auto ids = prompt(29, 3);
  const auto chunk = [&](std::size_t first, std::size_t size) {
    const auto part = std::span(ids).subspan(first, std::min(size, ids.size() - first));
    return Query{.token_ids = {part.begin(), part.end()},
                 .first_position = static_cast<std::uint32_t>(first),
                 .blocks = test::blocks_from(8, 8)};
  };
  for (const test::Parts& each : parts()) {
    for (const ops::Dtype dtype : {ops::Dtype::F32, ops::Dtype::BF16}) {
      const Checkpoint checkpoint(test::small_shape(dtype), each);
      for (const ops::Isa isa : test::available_isas()) {
        CAPTURE(std::string(ops::isa_name(isa)) + " " + ops::dtype_name(dtype));
        Loaded loaded(checkpoint, test::small_device(isa));
        const auto alone = loaded.run({chunk(0, 29)});
        for (const std::size_t size : {1U, 7U, 28U}) {
          std::vector<float> logits;
          for (std::size_t first = 0; first < ids.size(); first += size) {
            logits = loaded.run({chunk(first, size)});
          }
          CHECK(same_bits(logits, alone));
        }
        const auto batch =
            loaded.run({{.token_ids = prompt(9, 4), .blocks = test::blocks_from(0, 3), .seat = 1},
                        chunk(0, 29)});
        CHECK(same_bits(std::span(batch).subspan(211), alone));
      }
    }
  }
}

TEST_CASE("the reference attention is the portable one whatever the rest is") {
  const Checkpoint checkpoint(test::small_shape(ops::Dtype::F32));
  const auto logits_with = [&](ops::Isa isa, AttentionBackend attention) {
    DeviceOptions options = test::small_device(isa);
    options.attention = attention;
    Loaded loaded(checkpoint, options);
    return loaded.run({{.token_ids = prompt(21, 1), .blocks = test::blocks_from(3, 6)}});
  };
  const auto portable = logits_with(ops::Isa::Portable, AttentionBackend::Flash);
  CHECK(same_bits(logits_with(ops::Isa::Portable, AttentionBackend::Reference), portable));
  for (const ops::Isa isa : test::available_isas()) {
    const auto logits = logits_with(isa, AttentionBackend::Reference);
    check_near(logits, Matrix(portable.begin(), portable.end()), 2e-5);
  }
}

TEST_CASE("decoding step by step agrees with the reference") {
  const Checkpoint checkpoint(test::small_shape(ops::Dtype::F32));
  Loaded loaded(checkpoint, test::small_device());
  auto ids = prompt(5, 2);
  const auto blocks = test::blocks_from(0, 6);
  auto logits = loaded.run({{.token_ids = ids, .blocks = blocks}});
  for (int step = 0; step < 12; ++step) {
    const Matrix expected = Reference{checkpoint}.logits(ids);
    check_near(logits, expected, 2e-5);
    const auto best = std::max_element(expected.begin(), expected.end()) - expected.begin();
    CHECK(loaded.tokens[0] == static_cast<std::uint32_t>(best));
    ids.push_back(loaded.tokens[0]);
    const auto position = static_cast<std::uint32_t>(ids.size() - 1);
    logits =
        loaded.run({{.token_ids = {ids.back()}, .first_position = position, .blocks = blocks}});
  }
}

// The same 29 tokens for every dtype and every instruction set that this machine has.
struct Backend {
  Checkpoint checkpoint;
  ops::Isa isa;
  std::vector<std::uint32_t> ids;
  Loaded loaded;
  std::vector<float> alone;  // logits of ids by itself

  Backend(ops::Dtype dtype, ops::Isa chosen)
      : checkpoint(test::small_shape(dtype)),
        isa(chosen),
        ids(prompt(29, 3)),
        loaded(checkpoint, test::small_device(chosen)),
        alone(loaded.run({{.token_ids = ids, .blocks = test::blocks_from(0, 8)}})) {}
};

void for_each_backend(const std::function<void(Backend&)>& test) {
  for (const ops::Dtype dtype : {ops::Dtype::F32, ops::Dtype::F16, ops::Dtype::BF16}) {
    for (const ops::Isa isa : test::available_isas()) {
      const std::string name = std::string(ops::isa_name(isa)) + " " + ops::dtype_name(dtype);
      CAPTURE(name);
      Backend backend(dtype, isa);
      test(backend);
    }
  }
}

TEST_CASE("a sequence has the same bits in a batch, at any place, beside longer and shorter ones") {
  for_each_backend([](Backend& b) {
    for (std::uint32_t place = 0; place < 3; ++place) {
      std::vector<Query> queries;
      for (std::uint32_t seq = 0; seq < 3; ++seq) {
        queries.push_back({.token_ids = seq == place ? b.ids : prompt(3 + 5 * seq, 10 + seq),
                           .blocks = test::blocks_from(40 - 10 * seq, 8),
                           .seat = seq});
      }
      const auto logits = b.loaded.run(queries);
      CHECK(same_bits(std::span(logits).subspan(place * 211, 211), b.alone));
    }
  });
}

TEST_CASE("a sequence has the same bits in chunks of any size") {
  for_each_backend([](Backend& b) {
    for (const std::size_t chunk : {1U, 2U, 3U, 7U, 16U, 28U}) {
      std::vector<float> logits;
      for (std::size_t first = 0; first < b.ids.size(); first += chunk) {
        const auto part = std::span<const std::uint32_t>(b.ids).subspan(
            first, std::min(chunk, b.ids.size() - first));
        logits = b.loaded.run({{.token_ids = {part.begin(), part.end()},
                                .first_position = static_cast<std::uint32_t>(first),
                                .blocks = {9, 4, 30, 2, 17, 5, 11, 3}}});
      }
      CHECK(same_bits(logits, b.alone));
    }
  });
}

TEST_CASE("a sequence has the same bits over a prefix that another sequence computed") {
  for_each_backend([](Backend& b) {
    b.loaded.run({{.token_ids = {b.ids.begin(), b.ids.begin() + 20},
                   .blocks = test::blocks_from(20, 5),
                   .sample = false}});
    const auto logits = b.loaded.run({{.token_ids = prompt(4, 20), .blocks = {0}, .seat = 1},
                                      {.token_ids = {b.ids.begin() + 16, b.ids.end()},
                                       .first_position = 16,
                                       .blocks = {20, 21, 22, 23, 33, 31, 32, 34},
                                       .seat = 2}});
    CHECK(same_bits(std::span(logits).subspan(211), b.alone));
  });
}

TEST_CASE("a sequence has the same bits after recompute in blocks that others have used") {
  for_each_backend([](Backend& b) {
    b.loaded.run({{.token_ids = prompt(32, 30), .blocks = {7, 6, 5, 4, 3, 2, 1, 0}}});
    CHECK(same_bits(b.loaded.run({{.token_ids = b.ids, .blocks = {3, 1, 7, 5, 0, 2, 6, 4}}}),
                    b.alone));
  });
}

TEST_CASE("a sequence has the same bits with any number of threads") {
  for_each_backend([](Backend& b) {
    for (const std::uint32_t threads : {1U, 3U, 5U}) {
      Loaded other(b.checkpoint, test::small_device(b.isa, threads));
      CHECK(
          same_bits(other.run({{.token_ids = b.ids, .blocks = test::blocks_from(0, 8)}}), b.alone));
    }
  });
}

TEST_CASE("a sequence has the same bits with blocks of any size") {
  for_each_backend([](Backend& b) {
    for (const std::uint32_t block_size : {1U, 5U, 16U, 64U}) {
      ModelLimits limits = test::small_limits();
      limits.block_size = block_size;
      Loaded other(b.checkpoint, test::small_device(b.isa), limits);
      const auto blocks = test::blocks_from(0, (29 + block_size - 1) / block_size);
      CHECK(same_bits(other.run({{.token_ids = b.ids, .blocks = blocks}}), b.alone));
    }
  });
}

TEST_CASE("a sequence has the same bits on memory full of rubbish") {
  for_each_backend([](Backend& b) {
    // Models with little besides weights fill the pool with NaN and leave.
    Context context(test::small_device(b.isa));
    Checkpoint bad = b.checkpoint;
    for (auto& [name, tensor] : bad.tensors) tensor.values.assign(tensor.values.size(), NAN);
    const ModelLimits little{1, 8192, 1, 1, 1, {}};
    std::vector<std::uint32_t> models;
    CHECK_THROWS_AS(
        while (true) {
          models.push_back(context.add_model(bad.spec(), little).model);
          bad.load(context, models.back());
        },
        Error);
    CHECK(models.size() > 5);
    CHECK_THROWS_AS(context.finish_model(models[0]), Error);
    for (const std::uint32_t model : models) context.remove_model(model);
    const ModelPlan plan = context.add_model(b.checkpoint.spec(), test::small_limits());
    b.checkpoint.load(context, plan.model);
    context.finish_model(plan.model);
    test::bind_seats(context, plan.model, 1);
    const StepOutput output = context.run_step(
        plan.model, Step({{.token_ids = b.ids, .blocks = test::blocks_from(0, 8)}}).batch());
    CHECK(same_bits(output.logits, b.alone));
  });
}

}  // namespace
}  // namespace inferno::engine
