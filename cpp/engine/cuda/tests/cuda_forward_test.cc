// Goal: the forward pass on a GPU computes the Llama decoder, with graphs, two steps under way and
// fed tokens, and the deterministic mode gives the same bits alone and in any batch. Method: the
// reference in double of test_reference.h; then steps against steps. Needs a GPU.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>

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

LlamaShape gpu_shape(ops::Dtype dtype, std::uint32_t head_dim = 64) {
  LlamaShape shape = test::small_shape(dtype);
  shape.hidden_size = 136;  // not a multiple of any tile
  shape.intermediate_size = 200;
  shape.num_heads = 6;
  shape.num_kv_heads = 2;
  shape.head_dim = head_dim;
  return shape;
}

ModelLimits gpu_limits() {
  return {.block_size = 16,
          .kv_bytes = 16 << 20,
          .max_batch_size = 40,
          .max_step_tokens = 256,
          .max_seq_len = 256,
          .end_token_ids = {7}};
}

DeviceOptions gpu(bool deterministic = false) {
  return {.num_threads = 2,
          .pool_bytes = 512 << 20,
          .backend = BackendKind::Cuda,
          .deterministic = deterministic};
}

struct Loaded {
  Context context;
  std::uint32_t model;
  std::vector<std::uint32_t> tokens;  // of the last run

  Loaded(const Checkpoint& checkpoint, const DeviceOptions& device) : context(device) {
    model = context.add_model(spec_of(checkpoint.shape), gpu_limits()).model;
    checkpoint.load(context, model);
    context.finish_model(model);
    test::bind_seats(context, model, gpu_limits().max_batch_size);
  }

  std::vector<float> run(const std::vector<Query>& queries) {
    const StepOutput output = context.run_step(model, Step(queries).batch());
    tokens.assign(output.token_ids.begin(), output.token_ids.end());
    return {output.logits.begin(), output.logits.end()};
  }

  void submit(const std::vector<Query>& queries) {
    context.submit_step(model, Step(queries).batch(false));
  }
  std::vector<std::uint32_t> take() {
    const StepOutput output = context.take_step();
    return {output.token_ids.begin(), output.token_ids.end()};
  }
};

void check_near(const std::vector<float>& got, const Matrix& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  double scale = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - expected[i]);
    worst = error <= worst ? worst : error;
    scale = std::max(scale, std::abs(expected[i]));
  }
  CHECK_MESSAGE(worst <= tolerance * scale, "worst " << worst << " of " << scale);
}

std::vector<LlamaShape> family(ops::Dtype dtype) {
  std::vector<LlamaShape> shapes(4, gpu_shape(dtype));
  shapes[1].tie_word_embeddings = true;
  shapes[1].head_dim = 32;
  shapes[2].attention_bias = true;
  shapes[2].mlp_bias = true;
  shapes[2].head_dim = 128;
  shapes[3].num_kv_heads = shapes[3].num_heads;
  shapes[3].head_dim = 96;
  return shapes;
}

// Relative to the largest logit: weights, K, V and the activations between products are rounded.
const std::map<ops::Dtype, double> kTolerance = {{ops::Dtype::F16, 6e-3}, {ops::Dtype::BF16, 5e-2}};

TEST_CASE("GPU: logits agree with the reference for every member of the family and every dtype") {
  for (const auto& [dtype, error] : kTolerance) {
    for (const LlamaShape& shape : family(dtype)) {
      for (const bool deterministic : {false, true}) {
        CAPTURE(std::string(ops::dtype_name(dtype)));
        CAPTURE(shape.head_dim);
        CAPTURE(deterministic);
        const Checkpoint checkpoint(shape);
        Loaded loaded(checkpoint, gpu(deterministic));
        for (const std::size_t length : {1U, 21U, 75U}) {
          const auto ids = prompt(length, 1);
          const Matrix expected = Reference{checkpoint}.logits(ids);
          check_near(loaded.run({{.token_ids = ids, .blocks = test::blocks_from(3, 6)}}), expected,
                     error);
        }
      }
    }
  }
}

TEST_CASE("GPU: decoding from graphs agrees with the reference, in a batch with padding") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  Loaded loaded(checkpoint, gpu());
  std::vector<std::vector<std::uint32_t>> ids;
  for (std::uint32_t seq = 0; seq < 3; ++seq) {
    ids.push_back(prompt(9 + 11 * seq, seq));
    loaded.run({{.token_ids = ids[seq], .blocks = test::blocks_from(8 * seq, 4), .seat = seq}});
    ids[seq].push_back(loaded.tokens[0]);
  }
  for (int step = 0; step < 5; ++step) {
    std::vector<Query> queries;
    for (std::uint32_t seq = 0; seq < 3; ++seq) {
      queries.push_back({.token_ids = {ids[seq].back()},
                         .first_position = static_cast<std::uint32_t>(ids[seq].size() - 1),
                         .blocks = test::blocks_from(8 * seq, 4),
                         .seat = seq});
    }
    const auto logits = loaded.run(queries);
    for (std::uint32_t seq = 0; seq < 3; ++seq) {
      check_near({logits.begin() + seq * 211, logits.begin() + (seq + 1) * 211},
                 Reference{checkpoint}.logits(ids[seq]), kTolerance.at(ops::Dtype::BF16));
      ids[seq].push_back(loaded.tokens[seq]);
    }
  }
}

TEST_CASE(
    "GPU: short prompts from graphs agree with the reference, whole or after a cached prefix") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  Loaded loaded(checkpoint, gpu());
  for (const std::size_t length : {2U, 8U, 9U, 31U, 64U, 65U}) {
    CAPTURE(length);
    const auto ids = prompt(length, 7);
    const Matrix expected = Reference{checkpoint}.logits(ids);
    const auto blocks = test::blocks_from(4, 6);
    const auto run = [&](std::size_t first) {
      return loaded.run(
          {{.token_ids = {ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end()},
            .first_position = static_cast<std::uint32_t>(first),
            .blocks = blocks}});
    };
    check_near(run(0), expected, kTolerance.at(ops::Dtype::BF16));
    check_near(run(length / 2), expected, kTolerance.at(ops::Dtype::BF16));
  }
}

TEST_CASE("GPU: fed tokens and two steps under way give the tokens of one step after the other") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  Loaded loaded(checkpoint, gpu());
  const ops::SamplerSpec random{.temperature = 0.9F, .top_k = 20, .top_p = 0.95F, .seed = 3};
  loaded.context.bind_seat(loaded.model, random, {.seat = 1});
  const auto decode = [&](std::uint32_t position, std::uint32_t token, bool feed) {
    std::vector<Query> queries;
    for (std::uint32_t seq = 0; seq < 2; ++seq) {
      queries.push_back({.token_ids = {token},
                         .first_position = position,
                         .blocks = test::blocks_from(8 * seq, 4),
                         .seat = seq,
                         .feed_sampled = feed});
    }
    return queries;
  };
  const auto start = [&] {
    return std::vector<Query>{
        {.token_ids = prompt(10, 4), .blocks = test::blocks_from(0, 4), .seat = 0},
        {.token_ids = prompt(10, 5), .blocks = test::blocks_from(8, 4), .seat = 1}};
  };
  loaded.run(start());
  std::vector<std::vector<std::uint32_t>> expected{loaded.tokens};
  for (std::uint32_t position = 10; position < 20; ++position) {
    auto queries = decode(position, 0, false);
    queries[0].token_ids = {expected.back()[0]};
    queries[1].token_ids = {expected.back()[1]};
    loaded.run(queries);
    expected.push_back(loaded.tokens);
  }
  loaded.submit(start());
  std::vector<std::vector<std::uint32_t>> got;
  for (std::uint32_t position = 10; position < 20; ++position) {
    loaded.submit(decode(position, 210, true));
    CHECK_THROWS_AS(loaded.submit(decode(position + 1, 210, true)), Error);
    got.push_back(loaded.take());
  }
  got.push_back(loaded.take());
  CHECK(got == expected);
  CHECK_THROWS_AS(loaded.take(), Error);
}

TEST_CASE("GPU, deterministic: same bits alone, in a batch, in chunks, and decoded") {
  for (const ops::Dtype dtype : {ops::Dtype::F16, ops::Dtype::BF16}) {
    const Checkpoint checkpoint(gpu_shape(dtype));
    Loaded loaded(checkpoint, gpu(true));
    const auto ids = prompt(70, 3);
    const auto blocks = test::blocks_from(0, 8);
    const auto alone = loaded.run({{.token_ids = ids, .blocks = blocks}});
    for (std::uint32_t place = 0; place < 3; ++place) {
      std::vector<Query> queries;
      for (std::uint32_t seq = 0; seq < 3; ++seq) {
        queries.push_back({.token_ids = seq == place ? ids : prompt(3 + 40 * seq, 10 + seq),
                           .blocks = test::blocks_from(30 - 10 * seq, 8),
                           .seat = seq});
      }
      const auto logits = loaded.run(queries);
      CHECK(same_bits(std::span(logits).subspan(place * 211, 211), alone));
    }
    for (const std::size_t chunk : {1U, 7U, 33U}) {
      std::vector<float> logits;
      for (std::size_t first = 0; first < ids.size(); first += chunk) {
        const auto part =
            std::span<const std::uint32_t>(ids).subspan(first, std::min(chunk, ids.size() - first));
        logits = loaded.run({{.token_ids = {part.begin(), part.end()},
                              .first_position = static_cast<std::uint32_t>(first),
                              .blocks = {9, 4, 30, 2, 17, 5, 11, 3}}});
      }
      CHECK(same_bits(logits, alone));
    }
  }
}

TEST_CASE("GPU, deterministic: a graph with padding gives a sequence the bits it has alone") {
  for (const std::uint32_t head_dim : {32U, 64U, 128U}) {
    CAPTURE(head_dim);
    const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16, head_dim));
    Loaded loaded(checkpoint, gpu(true));
    const auto decode = [](std::uint32_t seq) {
      return Query{.token_ids = {5 + seq},
                   .first_position = 20,
                   .blocks = test::blocks_from(8 * seq, 8),
                   .seat = seq};
    };
    std::vector<Query> queries;
    std::vector<float> alone;
    for (std::uint32_t seq = 0; seq < 3; ++seq) {
      loaded.run({{.token_ids = prompt(20, seq), .blocks = test::blocks_from(8 * seq, 8)}});
      const auto logits = loaded.run({decode(seq)});
      alone.insert(alone.end(), logits.begin(), logits.end());
      queries.push_back(decode(seq));
    }
    // Three run in a graph of four.
    CHECK(same_bits(loaded.run(queries), alone));
    CHECK(same_bits(loaded.run(queries), alone));
  }
}

TEST_CASE("GPU: attention by the reference kernels agrees") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  DeviceOptions options = gpu();
  Loaded flash(checkpoint, options);
  options.attention = AttentionBackend::Reference;
  Loaded reference(checkpoint, options);
  const std::vector<Query> queries{{.token_ids = prompt(90, 6), .blocks = test::blocks_from(0, 8)}};
  const auto expected = flash.run(queries);
  check_near(reference.run(queries), Matrix(expected.begin(), expected.end()), 5e-2);
}

// Makes the calling thread's card the one of this number, counted round.
void enter_card(int number) {
  int count = 0;
  REQUIRE(cudaGetDeviceCount(&count) == cudaSuccess);
  REQUIRE(cudaSetDevice(number % count) == cudaSuccess);
}

TEST_CASE("GPU: two contexts on one card or on two give the same tokens") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  const std::vector<Query> queries{{.token_ids = prompt(50, 6), .blocks = test::blocks_from(0, 8)}};
  std::array<std::vector<std::uint32_t>, 2> tokens;
  std::barrier both(2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      enter_card(i);
      Loaded loaded(checkpoint, gpu());
      both.arrive_and_wait();
      loaded.submit(queries);
      tokens[static_cast<std::size_t>(i)] = loaded.take();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(tokens[0] == tokens[1]);
}

TEST_CASE("GPU: contexts come and go on other threads while graphs are recorded") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  std::vector<std::thread> threads;
  std::atomic<int> made = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      enter_card(i);
      for (int round = 0; round < 4; ++round) {
        try {
          Loaded loaded(checkpoint, gpu());
          loaded.run({{.token_ids = prompt(9, 1), .blocks = test::blocks_from(0, 1)}});
          ++made;
        } catch (const std::exception&) {
          // Counted below.
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(made == 16);
}

TEST_CASE("GPU: steps take nothing from the pool, and what does not fit is out_of_memory") {
  const Checkpoint checkpoint(gpu_shape(ops::Dtype::BF16));
  Loaded loaded(checkpoint, gpu());
  const MemoryStats before = loaded.context.memory_stats();
  for (std::uint32_t length : {1U, 5U, 40U, 200U}) {
    loaded.run({{.token_ids = prompt(length, length), .blocks = test::blocks_from(0, 16)}});
  }
  CHECK(loaded.context.memory_stats().num_allocations == before.num_allocations);
  DeviceOptions huge = gpu();
  huge.pool_bytes = std::uint64_t{1} << 50;
  CHECK_THROWS_WITH_AS(Context{huge}, doctest::Contains("out_of_memory: need"), Error);
}

TEST_CASE("GPU: a shape that the kernels have not got is refused before memory is taken") {
  Context context(gpu());
  const auto refuses = [&](LlamaShape shape, const char* field) {
    try {
      context.add_model(spec_of(shape), gpu_limits());
      FAIL("accepted");
    } catch (const std::exception& error) {
      CHECK_MESSAGE(std::string(error.what()).find(field) != std::string::npos, error.what());
    }
  };
  LlamaShape shape = gpu_shape(ops::Dtype::F32);
  refuses(shape, "activation");
  refuses(gpu_shape(ops::Dtype::BF16, 12), "rotary_dim");
  refuses(gpu_shape(ops::Dtype::BF16, 48), "head_dim");
  shape = gpu_shape(ops::Dtype::BF16);
  for (const std::uint32_t hidden_size : {132U, 16392U}) {
    shape.hidden_size = hidden_size;
    refuses(shape, "hidden_size");
  }
  CHECK(context.memory_stats().used_bytes == 0);
}

TEST_CASE("GPU: random weights are those of the CPU") {
  const LlamaShape shape = gpu_shape(ops::Dtype::BF16);
  const auto ids = prompt(12, 9);
  const auto logits_on = [&](const DeviceOptions& options) {
    Context context(options);
    const std::uint32_t model = context.add_model(spec_of(shape), gpu_limits()).model;
    context.fill_random(model, 11);
    context.finish_model(model);
    test::bind_seats(context, model, 1);
    const StepOutput output = context.run_step(
        model, Step({{.token_ids = ids, .blocks = test::blocks_from(0, 2)}}).batch());
    return std::vector<float>(output.logits.begin(), output.logits.end());
  };
  const auto cpu = logits_on({.num_threads = 2, .pool_bytes = 256 << 20});
  check_near(logits_on(gpu()), Matrix(cpu.begin(), cpu.end()), 5e-2);
}

}  // namespace
}  // namespace inferno::engine
