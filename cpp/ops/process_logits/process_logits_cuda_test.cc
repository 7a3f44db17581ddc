// Goal: the GPU applies the rules of process_logits.h and keeps the seats' state, bit by bit as the
// CPU does. Method: the CPU's functions beside it on seats of every kind mixed in one call, over
// several tokens, for vocabularies of every alignment.
#include "ops/process_logits/process_logits_cuda.h"

#include <limits>
#include <optional>

#include "ops/cuda/cuda_test_support.h"
#include "ops/sample/sampler_test_support.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::OwnedSpec;
using ops::test::OwnedStates;
using ops::test::Random;
using ops::test::random_ids;
using ops::test::random_spec;

constexpr float kInf = std::numeric_limits<float>::infinity();

// Seats on the host and their copy on the device.
struct Seats {
  Seats(Random& random, std::uint32_t num_seats, std::uint32_t vocab)
      : vocab(vocab), states(num_seats, vocab), counts(states.counts.size()) {
    for (std::uint32_t seat = 0; seat < num_seats; ++seat) {
      const std::uint32_t length = random.integer(1, 60);
      token_ids.push_back(random_ids(random, length, vocab));
      prompt_lens.push_back(random.integer(1, length));
      const OwnedSpec spec =
          seat % 4 == 3 ? OwnedSpec{} : random_spec(random, token_ids[seat], vocab);
      samplers.push_back(
          states.bind(spec.view(), {seat, prompt_lens[seat], token_ids[seat], ends}));
    }
    masks.emplace(states.masks);
    biases.emplace(states.biases);
    word_ids.emplace(states.word_ids);
    word_ends.emplace(states.word_ends);
    tails.emplace(states.tails);
  }

  SeatStates on_device() const {
    return {vocab,         masks->data(), biases->data(), word_ids->data(), word_ends->data(),
            tails->data(), counts.data()};
  }
  void count_on_device(const CudaOp& op, std::uint32_t seat) const {
    const DeviceBuffer<std::uint32_t> ids(token_ids[seat]);
    count_tokens_cuda(op, {.token_ids = ids.data(),
                           .num_tokens = static_cast<std::uint32_t>(token_ids[seat].size()),
                           .prompt_len = prompt_lens[seat],
                           .vocab_size = vocab,
                           .counts = counts.data() + seat * counts_stride(vocab)});
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  std::uint32_t vocab;
  std::vector<std::uint32_t> ends{0};
  OwnedStates states;
  std::vector<std::vector<std::uint32_t>> token_ids;
  std::vector<std::uint32_t> prompt_lens;
  std::vector<SeatSampler> samplers;
  std::optional<DeviceBuffer<std::uint32_t>> masks, word_ids, word_ends, tails;
  std::optional<DeviceBuffer<TokenBias>> biases;
  DeviceBuffer<std::uint16_t> counts;
};

std::vector<LogitRules> random_rules(Random& random, const Seats& seats,
                                     std::span<const std::uint32_t> order, std::uint32_t masks) {
  std::vector<LogitRules> rules;
  for (const std::uint32_t seat : order) {
    const std::uint32_t mask_row =
        random.integer(0, 3) == 0 ? random.integer(0, masks - 1) : kNoMaskRow;
    const auto position = static_cast<std::uint32_t>(seats.token_ids[seat].size());
    rules.push_back(seats.samplers[seat].rules_at(position, mask_row));
  }
  return rules;
}

std::vector<float> random_logits(Random& random, std::size_t size) {
  auto logits = random.normals(size);
  for (float& logit : logits) {
    if (random.integer(0, 99) == 0) logit = -kInf;
    if (random.integer(0, 9999) == 0) logit = std::nanf("");
    if (random.integer(0, 9999) == 0) logit = 3e38F;
  }
  return logits;
}

// One row for some seats in any order: logits, then a token for each.
void check_step(const TestDevice& device, Random& random, Seats& seats,
                std::span<const std::uint32_t> order) {
  const auto num_rows = static_cast<std::uint32_t>(order.size());
  const std::size_t words = mask_words(seats.vocab);
  const auto masks = random_ids(random, static_cast<std::uint32_t>(3 * words), ~0U);
  const auto rules = random_rules(random, seats, order, 3);
  const auto logits = random_logits(random, std::size_t{num_rows} * seats.vocab);
  const DeviceBuffer<float> in(logits);
  const DeviceBuffer<float> out(logits.size());
  const DeviceBuffer<LogitRules> device_rules(rules);
  const DeviceBuffer<std::uint32_t> device_masks(masks);
  const std::vector<float> before = out.to_host();
  process_logits_cuda(device.op(), {.logits = in.data(),
                                    .rules = device_rules.data(),
                                    .states = seats.on_device(),
                                    .masks = device_masks.data(),
                                    .num_rows = num_rows,
                                    .out = out.data()});
  const auto got = out.to_host();
  CHECK(out.guards_are_whole());
  CHECK(ops::test::same_bits(in.to_host(), logits));
  std::vector<Sampled> sampled(num_rows);
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    CAPTURE(row);
    const std::size_t at = std::size_t{row} * seats.vocab;
    std::vector<float> expected(before.begin() + at, before.begin() + at + seats.vocab);
    const std::span row_logits = std::span(logits).subspan(at, seats.vocab);
    if (rules[row].change_logits()) {
      process_logits(row_logits, rules[row], seats.states.view(), masks, expected);
    }
    REQUIRE(ops::test::same_bits(std::span(got).subspan(at, seats.vocab), expected));
    sampled[row].token_id = random.integer(0, seats.vocab - 1);
    if (random.integer(0, 9) == 0) {
      sampled[row].status = SampleStatus::kNothingLeft;
      continue;
    }
    note_sampled(rules[row], seats.states.view(), sampled[row].token_id);
    seats.token_ids[order[row]].push_back(sampled[row].token_id);
  }
  const DeviceBuffer<Sampled> device_sampled(sampled);
  note_sampled_cuda(device.op(), {.rules = device_rules.data(),
                                  .sampled = device_sampled.data(),
                                  .states = seats.on_device(),
                                  .num_rows = num_rows});
  CHECK(seats.tails->to_host() == seats.states.tails);
  CHECK(seats.counts.to_host() == seats.states.counts);
}

TEST_CASE("rules and state are the CPU's, for vocabularies of every alignment") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t vocab : {1U, 2U, 3U, 5U, 37U, 2050U, 5003U, 40000U}) {
    CAPTURE(vocab);
    Seats seats(random, 24, vocab);
    for (std::uint32_t seat = 0; seat < 24; ++seat) seats.count_on_device(device.op(), seat);
    REQUIRE(seats.counts.to_host() == seats.states.counts);
    std::vector<std::uint32_t> order(24);
    for (std::uint32_t i = 0; i < 24; ++i) order[i] = i;
    for (const std::size_t num_rows : {24U, 1U, 5U, 24U}) {
      random.shuffle(order);
      check_step(device, random, seats, std::span(order).first(num_rows));
    }
  }
}

TEST_CASE("a large vocabulary in a step of one row and of many") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t vocab : {128256U, 151643U}) {
    Seats seats(random, 9, vocab);
    for (std::uint32_t seat = 0; seat < 9; ++seat) seats.count_on_device(device.op(), seat);
    const std::vector<std::uint32_t> order = {8, 0, 1, 2, 3, 4, 5, 6, 7};
    check_step(device, random, seats, order);
    check_step(device, random, seats, std::span(order).first(1));
  }
}

TEST_CASE("counts of a long sequence, up to their largest") {
  TestDevice device;
  constexpr std::uint32_t kVocab = 1001;
  Random random(fresh_seed());
  for (const std::uint32_t prompt_len : {10U, 60000U, 100000U}) {
    auto ids = random_ids(random, 100000, kVocab);
    for (std::size_t i = 0; i < ids.size(); i += 2) ids[i] = 1000;
    std::vector<std::uint16_t> expected(counts_stride(kVocab));
    count_tokens(expected, ids, prompt_len);
    const DeviceBuffer<std::uint32_t> device_ids(ids);
    const DeviceBuffer<std::uint16_t> counts(expected.size());
    count_tokens_cuda(device.op(), {.token_ids = device_ids.data(),
                                    .num_tokens = 100000,
                                    .prompt_len = prompt_len,
                                    .vocab_size = kVocab,
                                    .counts = counts.data()});
    CHECK(counts.to_host() == expected);
    CHECK(counts.guards_are_whole());
  }
}

TEST_CASE("no rows are no work") {
  process_logits_cuda({nullptr, 1, false}, {});
  note_sampled_cuda({nullptr, 1, false}, {});
  count_tokens_cuda({nullptr, 1, false}, {});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
