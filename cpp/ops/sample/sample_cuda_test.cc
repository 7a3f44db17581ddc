// Goal: the GPU draws the very tokens of sample.h. Method: sample_row beside it on rows of every
// kind mixed in one call, for vocabularies of every alignment, with one workspace for many calls.
#include "ops/sample/sample_cuda.h"

#include <cmath>
#include <limits>

#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"
#include "ops/embed/embed_cuda.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr std::uint32_t kSeats = 512;

// The rows of one call.
struct Rows {
  std::uint32_t vocab;
  std::vector<float> logits;
  std::vector<SampleParams> params;
  std::vector<std::uint32_t> seats;
};

std::span<float> row_of(Rows& rows, std::size_t row) {
  return std::span(rows.logits).subspan(row * rows.vocab, rows.vocab);
}

// Logits as models have them, as random weights have them, flat, tied, and broken ones.
void fill_row(Random& random, std::span<float> row) {
  constexpr float kDeviations[] = {0.001F, 0.05F, 0.5F, 1.0F, 3.0F, 12.0F};
  const float deviation = kDeviations[random.integer(0, 5)];
  const std::uint32_t kind = random.integer(0, 19);
  for (float& logit : row) {
    logit = deviation * random.normal();
    if (kind < 3) logit = std::round(2 * logit) / 2;            // ties, -0 among them
    if (kind == 3) logit = -1.5F;                               // flat
    if (kind == 4 && random.integer(0, 9) != 0) logit = -kInf;  // mostly forbidden
    if (kind == 5) logit = -kInf;                               // nothing left
  }
  const auto any = random.integer(0, static_cast<std::uint32_t>(row.size()) - 1);
  if (kind == 6) row[any] = std::nanf("");
  if (kind == 7) row[any] = kInf;
  if (kind == 8) row[any] = 1e30F;
}

SampleParams random_params(Random& random) {
  constexpr float kTemperatures[] = {0.0F, 1e-45F, 0.3F, 0.7F, 1.0F, 1.0F, 2.0F, 1e30F};
  constexpr std::uint32_t kTopK[] = {0, 0, 1, 5, 50, 1000, 40000, 0xFFFFFFFF};
  constexpr float kTopP[] = {1.0F, 1.0F, 0.999F, 0.95F, 0.8F, 0.5F, 0.1F, 1e-6F};
  constexpr float kMinP[] = {0.0F, 0.0F, 0.0F, 0.01F, 0.2F, 1.0F};
  return {.temperature = kTemperatures[random.integer(0, 7)],
          .top_k = kTopK[random.integer(0, 7)],
          .top_p = kTopP[random.integer(0, 7)],
          .min_p = kMinP[random.integer(0, 5)],
          .seed = std::uint64_t{random.integer(0, 0xFFFFFFFF)} << 32 | random.integer(0, 9),
          .position = random.integer(0, 0xFFFFFFFF)};
}

Rows random_rows(Random& random, std::uint32_t vocab, std::uint32_t num_rows) {
  Rows rows{vocab, std::vector<float>(std::size_t{vocab} * num_rows), {}, {}};
  std::vector<std::uint32_t> seats(kSeats);
  for (std::uint32_t i = 0; i < kSeats; ++i) seats[i] = i;
  random.shuffle(seats);
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    fill_row(random, row_of(rows, row));
    rows.params.push_back(random_params(random));
    rows.seats.push_back(random.integer(0, 9) == 0 ? kNoSeat : seats[row]);
  }
  return rows;
}

// One call on the GPU and sample_row on the CPU give the same.
void check_rows(const TestDevice& device, const DeviceBuffer<std::byte>& workspace, Rows& rows) {
  CAPTURE(rows.vocab);
  const auto num_rows = static_cast<std::uint32_t>(rows.params.size());
  bool any_random = false;
  bool any_filter = false;
  for (const SampleParams& params : rows.params) {
    if (params.temperature == 0) continue;
    any_random = true;
    any_filter = any_filter || params.top_k != 0 || params.top_p < 1 || params.min_p > 0;
  }
  const DeviceBuffer<float> logits(rows.logits);
  const DeviceBuffer<SampleParams> params(rows.params);
  const DeviceBuffer<std::uint32_t> seats(rows.seats);
  const DeviceBuffer<Sampled> sampled(num_rows);
  const DeviceBuffer<std::uint32_t> sampled_ids(kSeats);
  sample_cuda(device.op(), {.logits = logits.data(),
                            .params = params.data(),
                            .seats = seats.data(),
                            .num_rows = num_rows,
                            .vocab_size = rows.vocab,
                            .any_random = any_random,
                            .any_filter = any_filter,
                            .workspace = workspace.data(),
                            .sampled = sampled.data(),
                            .sampled_ids = sampled_ids.data()});
  const auto results = sampled.to_host();
  const auto logits_after = logits.to_host();
  std::vector<std::uint32_t> ids_expected(kSeats, 0xFFFFFFFF);
  std::vector<float> weights(rows.vocab);
  std::vector<std::uint64_t> ranked(rows.vocab);
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    CAPTURE(row);
    const SampleParams& p = rows.params[row];
    CAPTURE(p.temperature);
    CAPTURE(p.top_k);
    CAPTURE(p.top_p);
    CAPTURE(p.min_p);
    const auto expected = sample_row(row_of(rows, row), p, {weights, ranked});
    REQUIRE(results[row].status == expected.status);
    REQUIRE(results[row].token_id == expected.token_id);
    if (expected.status == SampleStatus::kNotANumber) continue;
    REQUIRE(ops::test::same_bits(
        std::span(logits_after).subspan(std::size_t{row} * rows.vocab, rows.vocab),
        row_of(rows, row)));
    if (expected.status == SampleStatus::kOk && rows.seats[row] != kNoSeat) {
      ids_expected[rows.seats[row]] = expected.token_id;
    }
  }
  CHECK(sampled_ids.to_host() == ids_expected);
  CHECK(logits.guards_are_whole());
  CHECK(sampled.guards_are_whole());
  CHECK(sampled_ids.guards_are_whole());
}

// Calls of all sizes in turn on one workspace.
void check_vocabularies(std::span<const std::uint32_t> vocabularies,
                        std::span<const std::uint32_t> sizes) {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t vocab : vocabularies) {
    DeviceBuffer<std::byte> workspace(sample_cuda_workspace_bytes(300, vocab));
    workspace.zero();
    for (const std::uint32_t num_rows : sizes) {
      Rows rows = random_rows(random, vocab, num_rows);
      check_rows(device, workspace, rows);
    }
    CHECK(workspace.guards_are_whole());
  }
}

TEST_CASE("small vocabularies of every alignment give the tokens of sample_row") {
  constexpr std::uint32_t kVocabularies[] = {1, 2, 3, 4, 5, 37, 1000, 2049, 5001};
  constexpr std::uint32_t kSizes[] = {1, 7, 300, 2, 64};
  check_vocabularies(kVocabularies, kSizes);
}

TEST_CASE("large vocabularies give the tokens of sample_row") {
  constexpr std::uint32_t kVocabularies[] = {32000, 50257, 128256, 151643};
  constexpr std::uint32_t kSizes[] = {1, 1, 1, 48, 3, 9};
  check_vocabularies(kVocabularies, kSizes);
}

TEST_CASE("every filter alone and together cuts a large flat or narrow row where sample_row does") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kVocab = 128256;
  DeviceBuffer<std::byte> workspace(sample_cuda_workspace_bytes(16, kVocab));
  workspace.zero();
  for (const float deviation : {0.0F, 1e-6F, 0.01F, 0.3F, 1.3F, 4.0F}) {
    CAPTURE(deviation);
    Rows rows{kVocab, random.normals(std::size_t{16} * kVocab), {}, {}};
    for (float& logit : rows.logits) logit = 7.0F + deviation * logit;
    for (std::uint32_t row = 0; row < 16; ++row) {
      rows.params.push_back({.temperature = 0.9F,
                             .top_k = (row & 1) != 0 ? 30'000U >> row : 0,
                             .top_p = (row & 2) != 0 ? 0.9F : 1.0F,
                             .min_p = (row & 4) != 0 ? 0.05F : 0.0F,
                             .seed = row,
                             .position = 17});
      rows.seats.push_back(row);
    }
    check_rows(device, workspace, rows);
  }
}

TEST_CASE("greedy rows need the scan only") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t num_rows : {1U, 8U, 130U}) {
    DeviceBuffer<std::byte> workspace(sample_cuda_workspace_bytes(num_rows, 40001));
    workspace.zero();
    Rows rows = random_rows(random, 40001, num_rows);
    for (SampleParams& params : rows.params) params.temperature = 0;
    check_rows(device, workspace, rows);
  }
}

TEST_CASE("no rows are no work") { sample_cuda({nullptr, 1, false}, {}); }

}  // namespace
}  // namespace inferno::ops::cuda::test
