// Goal: experts on the GPU are right for every shape, way and spread of tokens, and where it is
// asked for a token's bits never depend on its company. Method: random problems against float64,
// outputs poisoned and between guards; the same tokens alone and in batches; a graph replayed with
// other tokens than it was recorded with.
#include "ops/experts/cuda/experts_cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "ops/experts/cuda/experts_cuda_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

constexpr Dtype kDtypes[] = {Dtype::BF16, Dtype::F16};

// Largest error in units of what is allowed: sums in float, and of the magnitudes of down's terms
// one rounding of what goes in and half of one of what comes out of it.
double worst_sums(const DeviceProblem& problem, Call call, const ExpertsOutputs& outputs) {
  const ExpertsCase& c = problem.host.c;
  const std::size_t width = c.shape.hidden_size;
  double worst = 0;
  for (std::uint32_t t = 0; t < c.tokens; ++t) {
    if (c.tokens > 40 && t % 7 != 0) continue;
    const ExpertsAnswer answer = problem.host.reference(t, c.dtype);
    for (std::size_t n = 0; n < width; ++n) {
      const double scale = call == Call::Add ? kScale : 1.0;
      const double before = call == Call::Add ? problem.before[t * width + n] : 0.0;
      const double allowed =
          scale * (1e-5 * answer.loose[n] + 1.6 * rounding(c.dtype) * answer.terms[n]) +
          1e-6 * std::abs(before) + 1e-6;
      const double error =
          std::abs(outputs.y[t * width + n] - (before + scale * answer.y[n])) / allowed;
      worst = error <= worst ? worst : error;  // a NaN becomes the worst
    }
  }
  return worst;
}

// next_h against what the new x gives.
double worst_next(const DeviceProblem& problem, const ExpertsOutputs& outputs) {
  const ExpertsCase& c = problem.host.c;
  const std::size_t width = c.shape.hidden_size;
  double worst = 0;
  for (std::size_t t = 0; t < c.tokens; ++t) {
    double squares = 0;
    for (std::size_t n = 0; n < width; ++n) squares += std::pow(outputs.y[t * width + n], 2.0);
    const double scale = outputs.deferred ? 1.0 : 1.0 / std::sqrt(squares / width + kEps);
    for (std::size_t n = 0; n < width; ++n) {
      const double expected = outputs.y[t * width + n] * scale * problem.norm_weight[n];
      const double allowed = rounding(c.dtype) * std::abs(expected) + 1e-5;
      const double error = std::abs(outputs.next_h[t * width + n] - expected) / allowed;
      worst = error <= worst ? worst : error;
    }
    if (!outputs.deferred) continue;
    double sums = 0;
    const std::size_t parts = norm_parts(c.shape.hidden_size);
    for (std::size_t i = 0; i < parts; ++i) sums += outputs.next_sums[t * parts + i];
    const double error = std::abs(sums - squares) / (1e-5 * squares);
    worst = error <= worst ? worst : error;
  }
  return worst;
}

void check_right(ExpertsBench& bench, const ExpertsCase& c, Random& random, bool deferred = false) {
  CAPTURE(c.tokens);
  CAPTURE(c.shape.num_experts);
  CAPTURE(c.shape.experts_per_token);
  CAPTURE(c.shape.hidden_size);
  CAPTURE(c.shape.intermediate_size);
  CAPTURE(static_cast<int>(c.spread));
  CAPTURE(static_cast<int>(c.activation.kind));
  CAPTURE(std::string(dtype_name(c.dtype)));
  CAPTURE(deferred);
  const DeviceProblem problem(c, random, deferred);
  for (const Call call : {Call::Store, Call::Add}) {
    const ExpertsOutputs outputs = bench.run(problem, call, 0, c.tokens);
    CHECK(worst_sums(problem, call, outputs) <= 1.0);
    CHECK(outputs.guards_are_whole);
    if (call == Call::Add) CHECK(worst_next(problem, outputs) <= 1.0);
  }
}

// Every dtype, activation and spread by turns.
void check_all(ExpertsBench& bench, const ExpertsShape& shape, std::uint32_t tokens,
               Random& random) {
  std::uint32_t turn = tokens;
  for (const Spread spread : {Spread::Random, Spread::AllOnOne, Spread::SomeUnused}) {
    ++turn;
    const ExpertsCase c{tokens, shape, kDtypes[turn % 2], turn % 3 != 0, kActivations[turn % 3],
                        spread};
    check_right(bench, c, random,
                (tokens <= kMaxFewRows || bench.batch_invariant) && turn % 2 == 0);
  }
}

TEST_CASE("experts of few rows are right") {
  Random random(fresh_seed());
  for (const ExpertsShape& shape : {ExpertsShape{8, 2, 64, 64},
                                    {128, 8, 128, 64},
                                    {32, 4, 320, 192},
                                    {5, 5, 256, 64},
                                    {1, 1, 64, 128},
                                    {60, 4, 64, 72 * 8}}) {
    ExpertsBench bench(shape, kMaxFewRows);
    for (const std::uint32_t tokens : {1U, 2U, 7U, 8U, 9U, 16U, 17U, 33U, kMaxFewRows}) {
      check_all(bench, shape, tokens, random);
    }
  }
}

TEST_CASE("experts of many rows are right") {
  Random random(fresh_seed());
  for (const ExpertsShape& shape :
       {ExpertsShape{8, 2, 64, 64}, {4, 2, 320, 192}, {3, 3, 128, 576}, {1, 1, 64, 128}}) {
    ExpertsBench bench(shape, 700);
    for (const std::uint32_t tokens : {65U, 129U, 200U, 700U}) {
      check_all(bench, shape, tokens, random);
    }
  }
}

TEST_CASE("many tiles for each block are right, however few stages each has") {
  Random random(fresh_seed());
  const ExpertsShape shape{4, 2, 2048, 64};
  ExpertsBench bench(shape, 3001);
  check_all(bench, shape, 3001, random);
}

TEST_CASE("experts that blocks do not sort for themselves are right") {
  Random random(fresh_seed());
  for (const ExpertsShape& shape : {ExpertsShape{128, 8, 64, 64}, {250, 6, 128, 64}}) {
    ExpertsBench bench(shape, 400);
    for (const std::uint32_t tokens : {65U, 100U, 400U}) check_all(bench, shape, tokens, random);
  }
}

TEST_CASE("experts of any number of rows are right where a row is to have the same bits") {
  Random random(fresh_seed());
  const ExpertsShape shape{6, 3, 320, 192};
  ExpertsBench bench(shape, 300);
  bench.set_batch_invariant();
  for (const std::uint32_t tokens : {1U, 9U, 64U, 65U, 300U}) {
    check_all(bench, shape, tokens, random);
  }
}

TEST_CASE("experts of wide rows are right") {
  Random random(fresh_seed());
  for (const ExpertsShape& shape : {ExpertsShape{4, 2, 2880, 320}, {4, 2, 320, 2880}}) {
    ExpertsBench bench(shape, 150);
    for (const std::uint32_t tokens : {1U, 8U, 150U}) check_all(bench, shape, tokens, random);
  }
}

TEST_CASE("the plain kernels of experts are right, for sizes that only they take too") {
  Random random(fresh_seed());
  for (const bool plain : {true, false}) {
    const ExpertsShape shape{6, 3, 104, 56};
    ExpertsBench bench(shape, 80, plain);
    for (const std::uint32_t tokens : {1U, 17U, 80U}) check_all(bench, shape, tokens, random);
  }
}

TEST_CASE("a token in a batch equals the token alone, where that is asked for") {
  Random random(fresh_seed());
  for (const ExpertsShape& shape : {ExpertsShape{16, 4, 320, 192}, {128, 8, 2048, 64}}) {
    for (const Dtype dtype : kDtypes) {
      const ExpertsCase c{300, shape, dtype, true, kActivations[0]};
      const DeviceProblem problem(c, random);
      ExpertsBench bench(shape, c.tokens);
      bench.set_batch_invariant();
      const std::size_t width = shape.hidden_size;
      for (const Call call : {Call::Store, Call::Add}) {
        const ExpertsOutputs all = bench.run(problem, call, 0, c.tokens);
        for (const auto& [first, count] : {std::pair{0U, 1U},
                                           {11U, 1U},
                                           {299U, 1U},
                                           {5U, 9U},
                                           {100U, 40U},
                                           {30U, 64U},
                                           {64U, 200U}}) {
          CAPTURE(first);
          CAPTURE(count);
          const ExpertsOutputs some = bench.run(problem, call, first, count);
          CHECK(same_bits(some.y, std::span(all.y).subspan(first * width, count * width)));
          if (call == Call::Store) continue;
          CHECK(
              same_bits(some.next_h, std::span(all.next_h).subspan(first * width, count * width)));
        }
      }
    }
  }
}

TEST_CASE("a graph gives the same bits with the tokens of its replay") {
  Random random(fresh_seed());
  const ExpertsShape shape{16, 4, 320, 192};
  for (const std::uint32_t tokens : {1U, 8U, 40U, 200U}) {
    CAPTURE(tokens);
    ExpertsBench bench(shape, tokens);
    const ExpertsCase c{tokens, shape, Dtype::BF16, true, kActivations[0]};
    const DeviceProblem problem(c, random);
    const DeviceProblem other(c, random);
    const ExpertsOutputs expected = bench.run(problem, Call::Store, 0, tokens);
    DeviceBuffer<float> y(expected.y.size());
    ExpertsInput in = problem.input(0, tokens);
    DeviceBuffer<std::uint32_t> ids(other.host.ids);
    in.expert_ids = ids.data();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(bench.op.stream, cudaStreamCaptureModeThreadLocal), "begin");
    for (int i = 0; i < 10; ++i) bench.experts->store(bench.op, in, problem.experts(), y.data());
    check(cudaStreamEndCapture(bench.op.stream, &graph), "end");
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    check(cudaGraphLaunch(executable, bench.op.stream), "launch");
    ids.copy_from(problem.host.ids);
    for (int i = 0; i < 10; ++i) check(cudaGraphLaunch(executable, bench.op.stream), "launch");
    bench.device.wait();
    CHECK(same_bits(y.to_host(), expected.y));
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

TEST_CASE("a token that is padding adds nothing and changes no other") {
  Random random(fresh_seed());
  const ExpertsShape shape{8, 2, 128, 64};
  for (const std::uint32_t tokens : {3U, 40U, 300U}) {
    ExpertsBench bench(shape, tokens);
    const DeviceProblem problem({tokens, shape, Dtype::BF16, true, kActivations[0]}, random);
    const ExpertsOutputs expected = bench.run(problem, Call::Store, 0, tokens);
    DeviceProblem padded({tokens, shape, Dtype::BF16, true, kActivations[0]}, random);
    std::vector<std::uint32_t> ids = problem.host.ids;
    ids[2] = ids[3] = kNoExpert;
    DeviceBuffer<std::uint32_t> device_ids(ids);
    ExpertsInput in = problem.input(0, tokens);
    in.expert_ids = device_ids.data();
    DeviceBuffer<float> y(expected.y.size());
    bench.experts->store(bench.op, in, problem.experts(), y.data());
    bench.device.wait();
    std::vector<float> wanted = expected.y;
    for (std::size_t i = 0; i < shape.hidden_size; ++i) wanted[shape.hidden_size + i] = 0.0F;
    CHECK(same_bits(y.to_host(), wanted));
  }
}

TEST_CASE("route_cuda takes the experts that the CPU takes") {
  TestDevice device;
  ops::test::Device cpu(Isa::Portable, 1);
  Random random(fresh_seed());
  for (const RouterKind kind : {RouterKind::SoftmaxTopK, RouterKind::TopKSoftmax}) {
    for (const auto& [experts, k] :
         {std::pair{1U, 1U}, {8U, 2U}, {32U, 32U}, {60U, 4U}, {128U, 8U}, {256U, 8U}, {7U, 7U}}) {
      const std::uint32_t tokens = random.integer(1, 70);
      const RouteRule rule{kind, experts, k, tokens % 2 == 0, 1.5F};
      std::vector<float> logits = random.normals(std::size_t{tokens} * experts);
      for (std::size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
      logits[0] = ops::test::kPoison;
      std::vector<std::uint32_t> ids(std::size_t{tokens} * k);
      std::vector<float> weights(ids.size());
      route(cpu.context(), {logits.data(), tokens, rule, ids.data(), weights.data()});
      std::vector<std::uint32_t> slots(tokens, 7);
      slots[tokens - 1] = 0xFFFFFFFF;
      for (std::size_t i = ids.size() - k; i < ids.size(); ++i) {
        ids[i] = kNoExpert;
        weights[i] = 0.0F;
      }
      const DeviceBuffer<float> device_logits(logits);
      const DeviceBuffer<std::uint32_t> device_slots(slots);
      const DeviceBuffer<std::uint32_t> device_ids(ids.size());
      const DeviceBuffer<float> device_weights(ids.size());
      route_cuda(device.op(), {device_logits.data(), tokens, rule, device_slots.data(),
                               device_ids.data(), device_weights.data()});
      device.wait();
      CHECK(device_ids.to_host() == ids);
      const std::vector<float> got = device_weights.to_host();
      for (std::size_t i = 0; i < got.size(); ++i) {
        const bool both_nan = std::isnan(got[i]) && std::isnan(weights[i]);
        CHECK((both_nan || std::abs(got[i] - weights[i]) <= 1e-5F * weights[i] + 1e-30F));
      }
      CHECK(device_ids.guards_are_whole());
      CHECK(device_weights.guards_are_whole());
    }
  }
}

// Coarse logits and corrections: no two sums are so near that a rounding would decide.
TEST_CASE("route_cuda by sigmoids takes the experts that the CPU takes") {
  TestDevice device;
  ops::test::Device cpu(Isa::Portable, 1);
  Random random(fresh_seed());
  for (const auto& [experts, k] :
       {std::pair{1U, 1U}, {8U, 2U}, {60U, 4U}, {128U, 8U}, {256U, 8U}}) {
    for (const bool corrected : {false, true}) {
      const std::uint32_t tokens = random.integer(1, 70);
      const RouteRule rule{RouterKind::Sigmoid, experts, k, tokens % 2 == 0, 2.5F};
      std::vector<float> logits = random.normals(std::size_t{tokens} * experts);
      for (float& logit : logits) logit = std::round(8 * logit) / 8;
      logits[0] = ops::test::kPoison;
      std::vector<float> correction(experts);
      for (float& value : correction) value = 0.1F * static_cast<float>(random.integer(0, 9));
      std::vector<std::uint32_t> ids(std::size_t{tokens} * k);
      std::vector<float> weights(ids.size());
      route(cpu.context(), {logits.data(), tokens, rule, ids.data(), weights.data(),
                            corrected ? correction.data() : nullptr});
      const DeviceBuffer<float> device_logits(logits);
      const DeviceBuffer<float> device_correction(correction);
      const DeviceBuffer<std::uint32_t> device_ids(ids.size());
      const DeviceBuffer<float> device_weights(ids.size());
      route_cuda(device.op(), {.logits = device_logits.data(),
                               .num_tokens = tokens,
                               .rule = rule,
                               .expert_ids = device_ids.data(),
                               .weights = device_weights.data(),
                               .score_correction = corrected ? device_correction.data() : nullptr});
      device.wait();
      CHECK(device_ids.to_host() == ids);
      const std::vector<float> got = device_weights.to_host();
      for (std::size_t i = 0; i < got.size(); ++i) {
        const bool both_nan = std::isnan(got[i]) && std::isnan(weights[i]);
        CHECK((both_nan || std::abs(got[i] - weights[i]) <= 1e-6F * weights[i]));
      }
      CHECK(device_ids.guards_are_whole());
      CHECK(device_weights.guards_are_whole());
    }
  }
}

TEST_CASE("experts on the GPU refuse what they cannot multiply, and no tokens are no work") {
  TestDevice device;
  const CudaOp& op = device.op();
  CHECK_THROWS_AS(ExpertsCuda(op, {257, 2, 64, 64}, 1, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(ExpertsCuda(op, {8, 9, 64, 64}, 1, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(ExpertsCuda(op, {8, 2, 60, 64}, 1, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(ExpertsCuda(op, {8, 2, 64, 60}, 1, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(route_cuda(op, {.rule = {RouterKind::SoftmaxTopK, 300, 2}}),
                  std::invalid_argument);
  ExpertsCuda experts(op, {8, 2, 64, 64}, 4, nullptr);
  ExpertsWeights weights{{nullptr, 128, {128, 64, Dtype::BF16}},
                         {nullptr, 128, {64, 64, Dtype::BF16}},
                         kActivations[0]};
  experts.store(op, {}, weights, nullptr);
  CHECK_THROWS_AS(experts.store(op, {.num_tokens = 5}, weights, nullptr), std::invalid_argument);
  weights.down.shape.format = Dtype::F32;
  CHECK_THROWS_AS(experts.store(op, {.num_tokens = 1}, weights, nullptr), std::invalid_argument);
  route_cuda(op, {.rule = {RouterKind::SoftmaxTopK, 8, 2}});
  device.wait();
}

}  // namespace
}  // namespace inferno::ops::cuda::test
