// Goal: a model with quantized matrices computes on a GPU what it computes on the CPU, and the
// deterministic mode gives the same bits alone and in a batch. Method: one random checkpoint of 16
// bits, which both quantize at load; prompts of few and of many rows, a decode from a graph. Needs
// a GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/testing/test_model.h"
#include "engine/testing/test_reference.h"

namespace inferno::engine {
namespace {

using test::Checkpoint;
using test::prompt;
using test::Query;
using test::same_bits;
using test::Step;

constexpr std::uint32_t kMaxBatch = 8;

LlamaShape shape_in(const WeightFormat& format) {
  LlamaShape shape = test::small_shape(ops::Dtype::BF16);
  shape.hidden_size = 136;  // not a multiple of any group
  shape.intermediate_size = 200;
  shape.head_dim = 64;
  shape.linear_format = format;
  return shape;
}

ModelLimits limits() {
  return {.block_size = 16,
          .kv_bytes = 16 << 20,
          .max_batch_size = kMaxBatch,
          .max_step_tokens = 256,
          .max_seq_len = 256,
          .end_token_ids = {7}};
}

DeviceOptions device(BackendKind backend, bool deterministic = false) {
  return {.num_threads = 2,
          .pool_bytes = 512 << 20,
          .backend = backend,
          .deterministic = deterministic};
}

struct Loaded {
  Context context;
  std::uint32_t model;

  Loaded(const Checkpoint& checkpoint, const DeviceOptions& options) : context(options) {
    model = context.add_model(checkpoint.spec(), limits()).model;
    checkpoint.load(context, model);
    context.finish_model(model);
    test::bind_seats(context, model, kMaxBatch);
  }

  std::vector<float> run(const std::vector<Query>& queries) {
    const StepOutput output = context.run_step(model, Step(queries).batch());
    return {output.logits.begin(), output.logits.end()};
  }
};

// Relative to the largest logit: activations between products are rounded, those of int8 and int4
// on both devices to 8 bits.
constexpr double kTolerance = 5e-2;
constexpr double kIntegerTolerance = 0.1;
// Where inputs become codes of e4m3, too, which have four bits.
constexpr double kCodedTolerance = 0.2;

void check_near(const std::vector<float>& got, const std::vector<float>& expected,
                double tolerance) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(double{got[i]} - expected[i]);
    worst = error <= worst ? worst : error;
    largest = std::max(largest, std::abs(double{expected[i]}));
  }
  CHECK_MESSAGE(worst <= tolerance * largest, "worst " << worst << " of " << largest);
}

constexpr WeightFormat kFormats[] = {{ops::WeightKind::Fp8},       {ops::WeightKind::Fp8, 128},
                                     {ops::WeightKind::Int8},      {ops::WeightKind::Int4},
                                     {ops::WeightKind::Int4, 128}, {ops::WeightKind::Int4, 32}};

TEST_CASE("GPU: a quantized model computes what it does on the CPU") {
  for (const WeightFormat& format : kFormats) {
    CAPTURE(std::string(ops::weight_kind_name(format.kind)));
    CAPTURE(format.group);
    const Checkpoint checkpoint(shape_in(format));
    Loaded cpu(checkpoint, device(BackendKind::Cpu));
    Loaded gpu(checkpoint, device(BackendKind::Cuda));
    for (const std::uint32_t length : {9U, 33U, 80U, 240U}) {
      CAPTURE(length);
      const bool coded = format == WeightFormat(ops::WeightKind::Fp8) && length >= 33;
      const bool integers =
          format.kind == ops::WeightKind::Int8 || format.kind == ops::WeightKind::Int4;
      const double tolerance = coded ? kCodedTolerance : integers ? kIntegerTolerance : kTolerance;
      const Query query{.token_ids = prompt(length, 1), .blocks = test::blocks_from(3, 16)};
      check_near(gpu.run({query}), cpu.run({query}), tolerance);
      const Query next{
          .token_ids = {5}, .first_position = length, .blocks = test::blocks_from(3, 16)};
      check_near(gpu.run({next}), cpu.run({next}), tolerance);
    }
  }
}

TEST_CASE("GPU: columns in an order of their own are multiplied by their inputs") {
  for (const WeightFormat& format :
       {WeightFormat(ops::WeightKind::Int4, 32), WeightFormat(ops::Dtype::BF16)}) {
    const Checkpoint checkpoint(shape_in(format), {.ordered = true});
    Loaded cpu(checkpoint, device(BackendKind::Cpu));
    Loaded gpu(checkpoint, device(BackendKind::Cuda));
    for (const std::uint32_t length : {9U, 33U, 80U, 240U}) {
      CAPTURE(length);
      const Query query{.token_ids = prompt(length, 1), .blocks = test::blocks_from(3, 16)};
      check_near(gpu.run({query}), cpu.run({query}), kIntegerTolerance);
      const Query next{
          .token_ids = {5}, .first_position = length, .blocks = test::blocks_from(3, 16)};
      check_near(gpu.run({next}), cpu.run({next}), kIntegerTolerance);
    }
  }
}

TEST_CASE("GPU: a quantized model's rows have the same bits alone and in a batch, if asked") {
  const Checkpoint checkpoint(shape_in({ops::WeightKind::Int4, 128}));
  Loaded gpu(checkpoint, device(BackendKind::Cuda, true));
  std::vector<Query> queries;
  for (std::uint32_t seq = 0; seq < 3; ++seq) {
    queries.push_back({.token_ids = prompt(20 + 40 * seq, seq),
                       .blocks = test::blocks_from(8 * seq, 8),
                       .seat = seq});
  }
  const std::vector<float> together = gpu.run(queries);
  const std::size_t width = together.size() / queries.size();
  for (std::size_t seq = 0; seq < queries.size(); ++seq) {
    CHECK(same_bits(gpu.run({queries[seq]}), std::span(together).subspan(seq * width, width)));
  }
}

TEST_CASE("GPU: random weights of every format give numbers") {
  const WeightFormat more[] = {{ops::WeightKind::Mxfp4, 32}, {ops::WeightKind::Int4, 128, true}};
  std::vector<WeightFormat> formats(std::begin(kFormats), std::end(kFormats));
  formats.insert(formats.end(), std::begin(more), std::end(more));
  for (const WeightFormat& format : formats) {
    Context context(device(BackendKind::Cuda));
    const std::uint32_t model = context.add_model(spec_of(shape_in(format)), limits()).model;
    context.fill_random(model, 3);
    context.finish_model(model);
    test::bind_seats(context, model, kMaxBatch);
    const Query query{.token_ids = prompt(30, 1), .blocks = test::blocks_from(0, 2)};
    for (const float logit : context.run_step(model, Step({query}).batch()).logits) {
      REQUIRE(std::isfinite(logit));
    }
  }
}

TEST_CASE("GPU: refuses what has no kernel, by name") {
  Context context(device(BackendKind::Cuda));
  const auto refusal = [&](const DecoderSpec& spec) -> std::string {
    try {
      context.add_model(spec, limits());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refusal(spec_of(shape_in({ops::WeightKind::Int4, 16}))).find("weights") !=
        std::string::npos);
  DecoderSpec spec = spec_of(shape_in(ops::Dtype::BF16));
  spec.embedding = {ops::WeightKind::Int8};
  CHECK(refusal(spec).find("embedding") != std::string::npos);
}

}  // namespace
}  // namespace inferno::engine
