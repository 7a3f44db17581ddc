// Goal: the sampler draws from exactly the distribution its contract states, and from the row
// alone. Method: a slow, sorting reference beside it, Philox's published answers, and frequencies
// over many seeds.
#include "ops/sample/sample.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <vector>

namespace inferno::ops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Sampler {
  std::vector<float> weights;
  std::vector<std::uint64_t> ranked;

  Sampled operator()(const std::vector<float>& logits, const SampleParams& params) {
    weights.resize(logits.size());
    ranked.resize(logits.size());
    return sample_row(logits, params, {weights, ranked});
  }
};

std::vector<float> random_logits(std::size_t size, float deviation, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(size);
  for (float& x : logits) x = normal(random);
  return logits;
}

// Ids that the filters keep, by sorting everything in double.
std::vector<std::uint32_t> kept_by_reference(const std::vector<float>& logits,
                                             const SampleParams& params) {
  std::vector<std::uint32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0U);
  std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  if (params.top_k != 0 && params.top_k < ids.size()) ids.resize(params.top_k);
  const double max = logits[ids[0]];
  const auto p = [&](std::uint32_t id) {
    return std::exp((logits[id] - max) / params.temperature);
  };
  double mass = 0;
  for (auto id : ids) mass += p(id);
  double sum = 0;
  std::size_t count = 0;
  while (count < ids.size() && (count == 0 || sum < params.top_p * mass)) sum += p(ids[count++]);
  if (params.top_p < 1) ids.resize(count);
  std::erase_if(ids, [&](auto id) { return p(id) < params.min_p; });
  std::sort(ids.begin(), ids.end());
  return ids;
}

TEST_CASE("philox gives the published answers") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("greedy takes the highest logit and the lowest id among equals") {
  Sampler sampler;
  CHECK(sampler({0, 3, 3, 1}, {}).token_id == 1);
  CHECK(sampler({-5}, {}).token_id == 0);
  std::vector<float> logits(1000, -1.0F);
  logits[777] = -0.5F;
  logits[778] = -0.5F;
  CHECK(sampler(logits, {}).token_id == 777);
  CHECK(sampler({-0.0F, 0.0F}, {}).token_id == 0);
}

TEST_CASE("refuses a row with NaN or +infinity, wherever it stands") {
  Sampler sampler;
  for (std::size_t at : {0U, 15U, 16U, 31U, 36U}) {
    std::vector<float> logits(37, 0.0F);
    logits[at] = std::nanf("");
    CHECK(sampler(logits, {}).status == SampleStatus::kNotANumber);
    CHECK(sampler(logits, {.temperature = 1}).status == SampleStatus::kNotANumber);
    logits[at] = kInf;
    CHECK(sampler(logits, {}).status == SampleStatus::kNotANumber);
    logits[at] = -kInf;
    CHECK(sampler(logits, {}).status == SampleStatus::kOk);
  }
}

TEST_CASE("what is -infinity is never drawn, and where all is there is nothing left") {
  Sampler sampler;
  for (std::uint32_t position = 0; position < 200; ++position) {
    const SampleParams params{.temperature = 2, .seed = 1, .position = position};
    const auto id = sampler({0, -kInf, 2, -kInf}, params).token_id;
    CHECK((id == 0 || id == 2));
  }
  CHECK(sampler({-kInf, -kInf}, {}).status == SampleStatus::kNothingLeft);
  CHECK(sampler({-kInf, -kInf}, {.temperature = 1}).status == SampleStatus::kNothingLeft);
}

TEST_CASE("top_k of one and a tiny top_p are greedy, ties included") {
  Sampler sampler;
  for (std::uint32_t position = 0; position < 50; ++position) {
    CHECK(sampler({1, 5, 5, 5}, {.temperature = 1, .top_k = 1, .seed = 7, .position = position})
              .token_id == 1);
    CHECK(sampler({1, 5, 5, 5}, {.temperature = 1, .top_p = 1e-6F, .seed = 7, .position = position})
              .token_id == 1);
  }
}

TEST_CASE("draws what the filters keep and nothing else") {
  const std::vector<SampleParams> cases = {
      {.temperature = 1, .top_k = 5},
      {.temperature = 0.7F, .top_p = 0.8F},
      {.temperature = 1.5F, .min_p = 0.1F},
      {.temperature = 1, .top_k = 20, .top_p = 0.6F},
      {.temperature = 1, .top_k = 20, .top_p = 0.9F, .min_p = 0.2F},
      {.temperature = 2, .top_k = 1000, .top_p = 0.3F},
  };
  Sampler sampler;
  for (unsigned row = 0; row < 4; ++row) {
    const auto logits = random_logits(row < 2 ? 50 : 600, row % 2 == 0 ? 1.0F : 3.0F, row);
    for (SampleParams params : cases) {
      const auto kept = kept_by_reference(logits, params);
      std::map<std::uint32_t, int> seen;
      for (std::uint32_t position = 0; position < 4000; ++position) {
        params.position = position;
        const Sampled sampled = sampler(logits, params);
        REQUIRE(sampled.status == SampleStatus::kOk);
        seen[sampled.token_id] += 1;
      }
      for (const auto& [id, count] : seen) {
        CHECK(std::binary_search(kept.begin(), kept.end(), id));
      }
      if (kept.size() <= 8) CHECK(seen.size() == kept.size());
      double mass = 0;
      const double max = *std::max_element(logits.begin(), logits.end());
      const auto p = [&](auto id) { return std::exp((logits[id] - max) / params.temperature); };
      for (auto id : kept) mass += p(id);
      for (auto id : kept) {
        const double expected = p(id) / mass;
        const double deviation = std::sqrt(expected * (1 - expected) / 4000);
        CHECK(std::abs(seen[id] / 4000.0 - expected) < 5 * deviation + 1e-3);
      }
    }
  }
}

TEST_CASE("a flat vocabulary is cut at the right place") {
  Sampler sampler;
  const std::vector<float> flat(32000, 0.25F);
  for (std::uint32_t position = 0; position < 300; ++position) {
    SampleParams params{.temperature = 1, .top_p = 0.5F, .seed = 3, .position = position};
    CHECK(sampler(flat, params).token_id < 16000);
    params.top_k = 100;
    CHECK(sampler(flat, params).token_id < 50);
  }
}

TEST_CASE("the extremes of temperature stay in range") {
  Sampler sampler;
  for (const float temperature : {1e-45F, 1e-38F, 1e-3F, 2.0F, 1e30F}) {
    for (std::uint32_t position = 0; position < 20; ++position) {
      const Sampled sampled = sampler(
          {-1e30F, 0, 1, -kInf}, {.temperature = temperature, .seed = 5, .position = position});
      CHECK(sampled.status == SampleStatus::kOk);
      CHECK(sampled.token_id < 3);
      if (temperature < 0.1F) CHECK(sampled.token_id == 2);
    }
  }
}

TEST_CASE("the same seed and position draw the same token, other ones another") {
  Sampler sampler;
  const auto logits = random_logits(5000, 0.5F, 9);
  std::map<std::uint32_t, int> by_seed;
  for (std::uint64_t seed : {0ULL, 1ULL, 1ULL << 32, ~0ULL, 0x123456789ABCDEFULL}) {
    const SampleParams params{.temperature = 1, .seed = seed, .position = 17};
    const auto id = sampler(logits, params).token_id;
    CHECK(sampler(logits, params).token_id == id);
    by_seed[id] += 1;
  }
  CHECK(by_seed.size() == 5);
}

}  // namespace
}  // namespace inferno::ops
