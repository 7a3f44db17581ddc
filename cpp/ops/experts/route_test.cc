// Goal: every token goes to its best experts with the right weights. Method: every kind of router
// against float64 and a full sort, ties, extremes, values that are not numbers, every k.
#include "ops/experts/route.h"

#include <numeric>
#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {
namespace {

struct Routed {
  std::vector<std::uint32_t> ids;
  std::vector<float> weights;
};

Routed routed(const OpContext& context, const RouteRule& rule, const std::vector<float>& logits,
              const float* correction = nullptr) {
  const auto tokens = static_cast<std::uint32_t>(logits.size() / rule.num_experts);
  Routed result{std::vector<std::uint32_t>(tokens * rule.experts_per_token, 0xFFFFFFFF),
                std::vector<float>(tokens * rule.experts_per_token, kPoison)};
  route(context,
        {logits.data(), tokens, rule, result.ids.data(), result.weights.data(), correction});
  return result;
}

void check_token(const RouteRule& rule, const float* logits, const std::uint32_t* ids,
                 const float* weights) {
  const std::uint32_t k = rule.experts_per_token;
  std::vector<std::uint32_t> order(rule.num_experts);
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return logits[a] > logits[b]; });
  double chosen = 0;
  double all = 0;
  for (std::uint32_t i = 0; i < rule.num_experts; ++i) {
    const double term = std::exp(double{logits[order[i]]} - logits[order[0]]);
    all += term;
    if (i < k) chosen += term;
  }
  const bool over_all = rule.kind == RouterKind::SoftmaxTopK && !rule.renormalise;
  for (std::uint32_t i = 0; i < k; ++i) {
    REQUIRE(ids[i] == order[i]);
    const double term = std::exp(double{logits[order[i]]} - logits[order[0]]);
    const double expected = term / (over_all ? all : chosen) * rule.routed_scale;
    REQUIRE(std::abs(weights[i] - expected) <= 3e-5 * expected + 1e-35);
  }
}

// Of softmax.
constexpr RouterKind kKinds[] = {RouterKind::SoftmaxTopK, RouterKind::TopKSoftmax};

}  // namespace

TEST_CASE("route takes the best experts, with the weights of float64") {
  Random random(1);
  for (const RouterKind kind : kKinds) {
    for (const bool renormalise : {false, true}) {
      for (const auto& [experts, k] :
           {std::pair{1U, 1U}, {8U, 2U}, {32U, 4U}, {60U, 4U}, {128U, 8U}, {256U, 8U}, {7U, 7U}}) {
        Device device(Isa::Portable, 2);
        const RouteRule rule{kind, experts, k, renormalise, 2.5F};
        std::vector<float> logits = random.normals(std::size_t{200} * experts);
        for (float& logit : logits) logit *= 4;
        const Routed result = routed(device.context(), rule, logits);
        for (std::size_t t = 0; t < 200; ++t) {
          check_token(rule, &logits[t * experts], &result.ids[t * k], &result.weights[t * k]);
        }
      }
    }
  }
}

// Scores from 0 to 1, so that corrections change the choice.
TEST_CASE("route by sigmoids chooses with the correction and weighs without it") {
  Random random(2);
  for (const bool corrected : {false, true}) {
    for (const bool renormalise : {false, true}) {
      for (const auto& [experts, k] :
           {std::pair{1U, 1U}, {8U, 2U}, {128U, 8U}, {256U, 8U}, {7U, 7U}}) {
        Device device(Isa::Portable, 2);
        const RouteRule rule{RouterKind::Sigmoid, experts, k, renormalise, 2.5F};
        const std::vector<float> logits = random.normals(std::size_t{200} * experts);
        const std::vector<float> correction = random.normals(experts);
        const Routed result =
            routed(device.context(), rule, logits, corrected ? correction.data() : nullptr);
        for (std::size_t t = 0; t < 200; ++t) {
          const auto score = [&](std::uint32_t e) {
            return 1 / (1 + std::exp(-double{logits[t * experts + e]}));
          };
          std::vector<std::uint32_t> order(experts);
          std::iota(order.begin(), order.end(), 0U);
          std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
            return score(a) + (corrected ? correction[a] : 0.0F) >
                   score(b) + (corrected ? correction[b] : 0.0F);
          });
          double sum = 0;
          for (std::uint32_t i = 0; i < k; ++i) sum += score(order[i]);
          for (std::uint32_t i = 0; i < k; ++i) {
            REQUIRE(result.ids[t * k + i] == order[i]);
            const double expected = score(order[i]) / (renormalise ? sum : 1) * 2.5;
            REQUIRE(std::abs(result.weights[t * k + i] - expected) <= 1e-6 * expected);
          }
        }
      }
    }
  }
}

TEST_CASE("sigmoids that vanish give weights, and what is not a number ranks last") {
  Device device(Isa::Portable, 1);
  const float infinity = std::numeric_limits<float>::infinity();
  const RouteRule rule{RouterKind::Sigmoid, 4, 2, true};
  const Routed none = routed(device.context(), rule, {-infinity, -1e30F, -200, -infinity});
  CHECK(none.ids == std::vector<std::uint32_t>{0, 1});
  CHECK(none.weights == std::vector<float>{0, 0});
  const Routed far = routed(device.context(), rule, {kPoison, 1e30F, -200, 0});
  CHECK(far.ids == std::vector<std::uint32_t>{1, 3});
  CHECK(far.weights[0] == doctest::Approx(2.0 / 3));
  const Routed nan = routed(device.context(), rule, {kPoison, kPoison, 0, kPoison});
  CHECK(nan.ids == std::vector<std::uint32_t>{2, 0});
  CHECK(std::isnan(nan.weights[0]));
  CHECK(std::isnan(nan.weights[1]));
}

TEST_CASE("of equal logits the lower expert's ranks first") {
  Device device(Isa::Portable, 1);
  for (const RouterKind kind : kKinds) {
    const Routed result = routed(device.context(), {kind, 6, 4, true}, {1, 2, 1, 2, 0, 1});
    CHECK(result.ids == std::vector<std::uint32_t>{1, 3, 0, 2});
    CHECK(result.weights[0] == result.weights[1]);
  }
}

TEST_CASE("logits far out give weights, and a token that is not a number ids that exist") {
  Device device(Isa::Portable, 1);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const RouterKind kind : kKinds) {
    const RouteRule rule{kind, 4, 2, true};
    const Routed far = routed(device.context(), rule, {-1e30F, 1e30F, -infinity, 0});
    CHECK(far.ids == std::vector<std::uint32_t>{1, 3});
    CHECK(far.weights == std::vector<float>{1, 0});
    const Routed nan = routed(device.context(), rule, {kPoison, kPoison, kPoison, kPoison});
    CHECK(nan.ids == std::vector<std::uint32_t>{0, 1});
    CHECK(std::isnan(nan.weights[0]));
    CHECK(std::isnan(nan.weights[1]));
  }
  const Routed among =
      routed(device.context(), {RouterKind::SoftmaxTopK, 3, 1, true}, {1, kPoison, 0});
  CHECK(among.ids[0] == 0);
  CHECK(std::isnan(among.weights[0]));
}

TEST_CASE("route refuses a number of experts that there is not, and no tokens are no work") {
  Device device(Isa::Portable, 1);
  CHECK_THROWS_AS(route(device.context(), {nullptr, 1, {RouterKind::SoftmaxTopK, 4, 5}, {}, {}}),
                  std::invalid_argument);
  CHECK_THROWS_AS(route(device.context(), {nullptr, 1, {RouterKind::SoftmaxTopK, 4, 0}, {}, {}}),
                  std::invalid_argument);
  route(device.context(), {nullptr, 0, {RouterKind::SoftmaxTopK, 4, 5}, {}, {}});
}

}  // namespace inferno::ops::test
