// Goal: a token's row is the sum of its own experts' outputs, to the bit the same in any company.
// Method: random problems against a plain float64 reference; the same tokens alone and in batches
// on 1 to 3 threads.
#include "ops/experts/experts.h"

#include <stdexcept>

#include "ops/experts/experts_fixture.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops::test {
namespace {

// The problem's matrices, packed.
struct Packed {
  Packed(const OpContext& context, const ExpertsProblem& problem)
      : gate_up(bytes(problem, wide(problem))),
        down(bytes(problem, narrow(problem))),
        weights{{gate_up.data(), packed_bytes(wide(problem)), wide(problem),
                 problem.c.bias ? problem.gate_up_bias.data() : nullptr},
                {down.data(), packed_bytes(narrow(problem)), narrow(problem),
                 problem.c.bias ? problem.down_bias.data() : nullptr},
                problem.c.activation} {
    pack(context, problem, problem.gate_up, wide(problem), gate_up.data());
    pack(context, problem, problem.down, narrow(problem), down.data());
  }

  static WeightShape wide(const ExpertsProblem& problem) {
    const ExpertsShape& shape = problem.c.shape;
    return {2 * shape.intermediate_size, shape.hidden_size, problem.c.dtype};
  }
  static WeightShape narrow(const ExpertsProblem& problem) {
    const ExpertsShape& shape = problem.c.shape;
    return {shape.hidden_size, shape.intermediate_size, problem.c.dtype};
  }
  static std::size_t bytes(const ExpertsProblem& problem, const WeightShape& matrix) {
    return packed_bytes(matrix) * problem.c.shape.num_experts;
  }
  static void pack(const OpContext& context, const ExpertsProblem& problem,
                   const std::vector<float>& values, const WeightShape& matrix, std::byte* packed) {
    const std::vector<std::byte> source = encode(values, matrix.dtype());
    const std::size_t size = source.size() / problem.c.shape.num_experts;
    for (std::uint32_t e = 0; e < problem.c.shape.num_experts; ++e) {
      pack_rows(context, matrix, packed + e * packed_bytes(matrix), 0,
                {source.data() + e * size, matrix.dtype(), matrix.num_rows});
    }
  }

  AlignedBytes gate_up, down;
  ExpertsWeights weights;
};

// Of tokens [first, first + count), stored.
ExpertsArgs args_of(const ExpertsProblem& problem, const Packed& packed, std::uint32_t first,
                    std::uint32_t count) {
  const std::size_t k = problem.c.shape.experts_per_token;
  return {.h = problem.h.data() + std::size_t{first} * problem.c.shape.hidden_size,
          .num_tokens = count,
          .shape = problem.c.shape,
          .expert_ids = problem.ids.data() + first * k,
          .weights = problem.weights.data() + first * k,
          .experts = packed.weights,
          .scale = 1,
          .y = nullptr,
          .accumulate = false};
}

// Largest error in units of what is allowed: sums in float, and where bf16 is multiplied one
// rounding of what goes into down.
double worst_error(Isa isa, const ExpertsProblem& problem, std::span<const float> y) {
  const bool rounds = isa >= Isa::Avx512Bf16 && problem.c.dtype == Dtype::BF16;
  const std::size_t width = problem.c.shape.hidden_size;
  double worst = 0;
  for (std::uint32_t t = 0; t < problem.c.tokens; ++t) {
    if (problem.c.tokens > 40 && t % 37 != 0) continue;
    const ExpertsAnswer answer = problem.reference(t, rounds ? Dtype::BF16 : Dtype::F32);
    for (std::size_t n = 0; n < width; ++n) {
      const double allowed = 4e-6 * answer.loose[n] + (rounds ? 0x1p-8 : 0) * answer.terms[n];
      const double error = std::abs(y[t * width + n] - answer.y[n]) / allowed;
      worst = error <= worst ? worst : error;  // a NaN becomes the worst
    }
  }
  return worst;
}

void check_case(Isa isa, const ExpertsCase& c, std::uint32_t seed) {
  CAPTURE(c.tokens);
  CAPTURE(c.shape.num_experts);
  CAPTURE(c.shape.hidden_size);
  CAPTURE(std::string(dtype_name(c.dtype)));
  Random random(seed);
  const ExpertsProblem problem(c, random);
  Device device(isa, 2, experts_workspace_bytes(c.shape, c.tokens, 2));
  const Packed packed(device.context(), problem);
  Output y(std::size_t{c.tokens} * c.shape.hidden_size);
  ExpertsArgs args = args_of(problem, packed, 0, c.tokens);
  args.y = y.data();
  experts(device.context(), args);
  CHECK(worst_error(isa, problem, y.span()) < 1);
  CHECK(y.guards_are_whole());
}

constexpr Dtype kDtypes[] = {Dtype::F32, Dtype::F16, Dtype::BF16};

}  // namespace

TEST_CASE("experts agree with float64 for every activation, dtype and spread") {
  for_each_isa([](Isa isa) {
    std::uint32_t seed = 0;
    for (const Activation& activation : kActivations) {
      for (const Dtype dtype : kDtypes) {
        for (const Spread spread : {Spread::Random, Spread::AllOnOne, Spread::SomeUnused}) {
          ++seed;
          const bool bias = seed % 2 == 0;
          check_case(isa, {1, {8, 2, 64, 48}, dtype, bias, activation, spread}, seed);
          check_case(isa, {9, {16, 4, 37, 29}, dtype, !bias, activation, spread}, seed);
        }
      }
    }
  });
}

TEST_CASE("experts agree with float64 for one expert, for all of them, and beyond a group") {
  for_each_isa([](Isa isa) {
    check_case(isa, {5, {1, 1, 40, 24}, Dtype::F32, true, kActivations[0]}, 1);
    check_case(isa, {6, {5, 5, 40, 24}, Dtype::BF16, true, kActivations[2]}, 2);
    check_case(isa, {600, {4, 2, 24, 16}, Dtype::BF16, false, kActivations[0], Spread::AllOnOne},
               3);
    check_case(isa, {700, {64, 4, 24, 16}, Dtype::F16, true, kActivations[1]}, 4);
  });
}

TEST_CASE("a token has the same bits alone, in any batch and for any number of threads") {
  for_each_isa([](Isa isa) {
    for (const Dtype dtype : kDtypes) {
      Random random(11);
      const ExpertsCase c{530, {6, 3, 72, 56}, dtype, true, kActivations[0], Spread::SomeUnused};
      const ExpertsProblem problem(c, random);
      const std::size_t width = c.shape.hidden_size;
      Device single(isa, 1, experts_workspace_bytes(c.shape, c.tokens, 1));
      const Packed packed(single.context(), problem);
      std::vector<float> alone(c.tokens * width, kPoison);
      for (std::uint32_t t = 0; t < c.tokens; ++t) {
        ExpertsArgs args = args_of(problem, packed, t, 1);
        args.y = alone.data() + t * width;
        experts(single.context(), args);
      }
      for (std::uint32_t num_threads = 1; num_threads <= 3; ++num_threads) {
        Device device(isa, num_threads, experts_workspace_bytes(c.shape, c.tokens, num_threads));
        for (const std::uint32_t count : {2U, 17U, 256U, 530U}) {
          const std::uint32_t first = c.tokens - count;
          Output y(count * width);
          ExpertsArgs args = args_of(problem, packed, first, count);
          args.y = y.data();
          experts(device.context(), args);
          REQUIRE(same_bits(y.span(), std::span(alone).subspan(first * width, count * width)));
        }
      }
    }
  });
}

TEST_CASE("experts add to what is there, scaled") {
  for_each_isa([](Isa isa) {
    Random random(3);
    const ExpertsProblem problem({4, {4, 2, 16, 8}, Dtype::F32, true, kActivations[0]}, random);
    Device device(isa, 1, experts_workspace_bytes(problem.c.shape, 4, 1));
    const Packed packed(device.context(), problem);
    std::vector<float> stored(4 * 16, kPoison);
    ExpertsArgs args = args_of(problem, packed, 0, 4);
    args.y = stored.data();
    experts(device.context(), args);
    const std::vector<float> before = random.normals(4 * 16);
    std::vector<float> added = before;
    args.y = added.data();
    args.scale = 0.25F;
    args.accumulate = true;
    experts(device.context(), args);
    for (std::size_t i = 0; i < added.size(); ++i) {
      CHECK(std::abs(added[i] - (before[i] + 0.25F * stored[i])) < 1e-5F);
    }
  });
}

TEST_CASE("experts refuse ids, shapes and workspaces that do not fit, and no tokens are no work") {
  Random random(5);
  ExpertsProblem problem({2, {4, 2, 16, 8}, Dtype::F32, false, kActivations[0]}, random);
  Device device(Isa::Portable, 1, experts_workspace_bytes(problem.c.shape, 2, 1));
  const Packed packed(device.context(), problem);
  std::vector<float> y(2 * 16);
  ExpertsArgs args = args_of(problem, packed, 0, 2);
  args.y = y.data();
  Device small(Isa::Portable, 1, 64);
  CHECK_THROWS_AS(experts(small.context(), args), std::invalid_argument);
  args.shape.intermediate_size = 9;
  CHECK_THROWS_AS(experts(device.context(), args), std::invalid_argument);
  args.shape.intermediate_size = 8;
  problem.ids[3] = 4;
  CHECK_THROWS_AS(experts(device.context(), args), std::invalid_argument);
  args.num_tokens = 0;
  experts(device.context(), args);
}

}  // namespace inferno::ops::test
