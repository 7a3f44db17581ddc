// Goal: the GPU's scores are those of score.h, bit by bit, of the model's own distribution and of
// what was drawn from; alone and in a batch. Method: sample_row and score_row beside the kernels on
// rows of every kind mixed in one call, with one workspace for many calls.
#include "ops/score/score_cuda.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"
#include "ops/embed/embed_cuda.h"
#include "ops/sample/sample_cuda.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Rows {
  std::uint32_t vocab;
  std::vector<float> logits, processed;
  std::vector<SampleParams> params;
  std::vector<LogitRules> rules;
  std::vector<RowLogprobs> wanted;

  std::uint32_t count() const { return static_cast<std::uint32_t>(params.size()); }
  std::span<const float> row_of(const std::vector<float>& rows, std::size_t row) const {
    return std::span(rows).subspan(row * vocab, vocab);
  }
  std::span<const float> drawn(std::size_t row) const {
    return row_of(rules[row].change_logits() ? processed : logits, row);
  }
};

void fill_row(Random& random, std::span<float> row) {
  constexpr float kDeviations[] = {0.0F, 0.05F, 1.0F, 3.0F, 12.0F};
  const float deviation = kDeviations[random.integer(0, 4)];
  const std::uint32_t kind = random.integer(0, 15);
  for (float& logit : row) {
    logit = 5 + deviation * random.normal();
    if (kind < 3) logit = std::round(logit) - 5;                // ties, -0 among them
    if (kind == 4 && random.integer(0, 9) != 0) logit = -kInf;  // mostly forbidden
    if (kind == 5) logit = -kInf;                               // nothing left
  }
  const auto any = random.integer(0, static_cast<std::uint32_t>(row.size()) - 1);
  if (kind == 6) row[any] = std::nanf("");
  if (kind == 7) row[any] = kInf;
  if (kind == 8) row[any] = 1e30F;
}

Rows random_rows(Random& random, std::uint32_t vocab, std::uint32_t num_rows) {
  constexpr float kTemperatures[] = {0.0F, 0.3F, 0.7F, 1.0F, 2.0F};
  constexpr std::uint32_t kTopK[] = {0, 0, 1, 5, 50, 1000};
  constexpr float kTopP[] = {1.0F, 1.0F, 0.95F, 0.5F};
  constexpr float kMinP[] = {0.0F, 0.0F, 0.01F, 0.2F};
  constexpr std::uint32_t kTop[] = {0, 1, 5, 20};
  const std::size_t size = std::size_t{vocab} * num_rows;
  Rows rows{vocab, std::vector<float>(size), std::vector<float>(size), {}, {}, {}};
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    fill_row(random, std::span(rows.logits).subspan(std::size_t{row} * vocab, vocab));
    fill_row(random, std::span(rows.processed).subspan(std::size_t{row} * vocab, vocab));
    rows.params.push_back({.temperature = kTemperatures[random.integer(0, 4)],
                           .top_k = kTopK[random.integer(0, 5)],
                           .top_p = kTopP[random.integer(0, 3)],
                           .min_p = kMinP[random.integer(0, 3)],
                           .seed = random.integer(0, 9),
                           .position = row});
    rows.rules.push_back({.has_penalties = random.integer(0, 1)});
    rows.wanted.push_back(
        {kTop[random.integer(0, 3)], random.integer(0, 4) != 0, random.integer(0, 1) == 0});
  }
  return rows;
}

struct Scored {
  std::vector<Sampled> sampled;
  std::vector<RowScore> scores;
  std::vector<TokenLogit> top;
};

// Both ops with what the host knows of no row.
Scored run(const TestDevice& device, void* sample_workspace, void* score_workspace,
           const Rows& rows) {
  const DeviceBuffer<float> logits(rows.logits);
  const DeviceBuffer<float> processed(rows.processed);
  const DeviceBuffer<SampleParams> params(rows.params);
  const DeviceBuffer<LogitRules> rules(rows.rules);
  const DeviceBuffer<RowLogprobs> wanted(rows.wanted);
  const DeviceBuffer<std::uint32_t> seats(std::vector<std::uint32_t>(rows.count(), kNoSeat));
  const DeviceBuffer<Sampled> sampled(rows.count());
  const DeviceBuffer<Kept> kept(rows.count());
  const DeviceBuffer<RowScore> scores(rows.count());
  const DeviceBuffer<TokenLogit> top(std::size_t{rows.count()} * kMaxTop);
  sample_cuda(device.op(), {.logits = logits.data(),
                            .processed = processed.data(),
                            .rules = rules.data(),
                            .params = params.data(),
                            .seats = seats.data(),
                            .num_rows = rows.count(),
                            .vocab_size = rows.vocab,
                            .any_random = true,
                            .any_filter = true,
                            .workspace = sample_workspace,
                            .sampled = sampled.data(),
                            .kept = kept.data()});
  score_cuda(device.op(), {.logits = logits.data(),
                           .rows = wanted.data(),
                           .targets = sampled.data(),
                           .processed = processed.data(),
                           .rules = rules.data(),
                           .kept = kept.data(),
                           .num_rows = rows.count(),
                           .vocab_size = rows.vocab,
                           .workspace = score_workspace,
                           .scores = scores.data(),
                           .top = top.data()});
  const Scored result{sampled.to_host(), scores.to_host(), top.to_host()};
  CHECK(scores.guards_are_whole());
  CHECK(top.guards_are_whole());
  return result;
}

// What the CPU makes of one row.
struct Expected {
  Sampled sampled;
  RowScore score;
  std::vector<TokenLogit> top;
};

Expected expected_of(const Rows& rows, std::uint32_t row) {
  std::vector<float> weights(rows.vocab);
  std::vector<std::uint64_t> ranked(rows.vocab);
  const auto drawn = rows.drawn(row);
  Kept kept;
  const RowLogprobs& wanted = rows.wanted[row];
  Expected expected{sample_row(drawn, rows.params[row], {weights, ranked}, &kept),
                    {},
                    std::vector<TokenLogit>(wanted.num_top)};
  const bool is_drawn = expected.sampled.status == SampleStatus::kOk;
  expected.score = score_row(wanted.processed ? drawn : rows.row_of(rows.logits, row),
                             wanted.processed ? &kept : nullptr,
                             is_drawn ? expected.sampled.token_id : kNoToken, expected.top);
  return expected;
}

void check_row(const Rows& rows, const Scored& got, std::uint32_t row) {
  CAPTURE(row);
  const RowLogprobs& wanted = rows.wanted[row];
  CAPTURE(wanted.processed);
  const Expected expected = expected_of(rows, row);
  REQUIRE(got.sampled[row].status == expected.sampled.status);
  REQUIRE(got.sampled[row].token_id == expected.sampled.token_id);
  const bool is_drawn = expected.sampled.status == SampleStatus::kOk;
  if (!wanted.wanted || (wanted.processed && !is_drawn)) return;
  const RowScore& score = got.scores[row];
  REQUIRE(score.mass == expected.score.mass);
  REQUIRE(score.num_top == expected.score.num_top);
  if (score.mass == 0) return;
  REQUIRE(score.max == expected.score.max);
  REQUIRE(score.temperature == expected.score.temperature);
  if (is_drawn) REQUIRE(score.logit == expected.score.logit);
  for (std::uint32_t i = 0; i < score.num_top; ++i) {
    CAPTURE(i);
    const TokenLogit& found = got.top[std::size_t{row} * kMaxTop + i];
    REQUIRE(found.token_id == expected.top[i].token_id);
    REQUIRE(found.logit == expected.top[i].logit);
  }
}

void check_vocabulary(const TestDevice& device, Random& random, std::uint32_t vocab,
                      std::span<const std::uint32_t> sizes) {
  CAPTURE(vocab);
  DeviceBuffer<std::byte> sample_workspace(sample_cuda_workspace_bytes(300, vocab));
  DeviceBuffer<std::byte> score_workspace(score_cuda_workspace_bytes(300, vocab));
  sample_workspace.zero();
  score_workspace.zero();
  for (const std::uint32_t num_rows : sizes) {
    const Rows rows = random_rows(random, vocab, num_rows);
    const Scored got = run(device, sample_workspace.data(), score_workspace.data(), rows);
    for (std::uint32_t row = 0; row < num_rows; ++row) check_row(rows, got, row);
  }
  CHECK(score_workspace.guards_are_whole());
}

TEST_CASE("small vocabularies of every alignment give the scores of score_row") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kSizes[] = {1, 7, 300, 2, 64};
  for (const std::uint32_t vocab : {1U, 2U, 3U, 4U, 5U, 37U, 1000U, 2049U, 8191U, 8193U}) {
    check_vocabulary(device, random, vocab, kSizes);
  }
}

TEST_CASE("large vocabularies give the scores of score_row") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kSizes[] = {1, 1, 33, 3};
  for (const std::uint32_t vocab : {50257U, 128256U, 151643U, 262144U}) {
    check_vocabulary(device, random, vocab, kSizes);
  }
}

TEST_CASE("scores of given tokens, as of a prompt, need no sampler") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kVocab = 32003;
  constexpr std::uint32_t kRows = 11;
  Rows rows = random_rows(random, kVocab, kRows);
  DeviceBuffer<std::byte> workspace(score_cuda_workspace_bytes(kRows, kVocab));
  workspace.zero();
  std::vector<Sampled> targets(kRows);
  for (std::uint32_t row = 0; row < kRows; ++row) {
    rows.wanted[row] = {5, true, false};
    targets[row] = {SampleStatus::kOk, random.integer(0, kVocab - 1)};
  }
  const DeviceBuffer<float> logits(rows.logits);
  const DeviceBuffer<RowLogprobs> wanted(rows.wanted);
  const DeviceBuffer<Sampled> device_targets(targets);
  const DeviceBuffer<RowScore> scores(kRows);
  const DeviceBuffer<TokenLogit> top(std::size_t{kRows} * kMaxTop);
  score_cuda(device.op(), {.logits = logits.data(),
                           .rows = wanted.data(),
                           .targets = device_targets.data(),
                           .num_rows = kRows,
                           .vocab_size = kVocab,
                           .workspace = workspace.data(),
                           .scores = scores.data(),
                           .top = top.data()});
  const auto got = scores.to_host();
  const auto got_top = top.to_host();
  for (std::uint32_t row = 0; row < kRows; ++row) {
    std::vector<TokenLogit> expected_top(5);
    const RowScore expected =
        score_row(rows.row_of(rows.logits, row), nullptr, targets[row].token_id, expected_top);
    CHECK(got[row].mass == expected.mass);
    if (expected.mass == 0) continue;
    CHECK(logprob_of(got[row], got[row].logit) == logprob_of(expected, expected.logit));
    for (std::uint32_t i = 0; i < 5; ++i) {
      CHECK(got_top[row * kMaxTop + i].token_id == expected_top[i].token_id);
    }
  }
}

TEST_CASE("no rows are no work") { score_cuda({nullptr, 1, false}, {}); }

}  // namespace
}  // namespace inferno::ops::cuda::test
