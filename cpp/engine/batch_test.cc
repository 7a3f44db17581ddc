// Goal: no batch that contradicts itself or the model reaches memory, and what follows from one is
// right. Method: one valid batch of two sequences, spoilt in one place at a time; then random
// rubbish under the sanitizers.
#include "engine/batch.h"

#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <random>
#include <string>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

// Owns what StepBatch views. A vocabulary of 40 makes two words of a mask.
struct Arrays {
  std::vector<std::uint32_t> token_ids = {5, 6, 7, 9};
  std::vector<std::uint32_t> query_lens = {3, 1};
  std::vector<std::uint32_t> context_lens = {6, 1};
  std::vector<std::uint32_t> block_tables = {2, 1, 7, 99};
  std::uint32_t stride = 2;
  std::vector<std::uint32_t> seats = {0, 2};
  std::vector<char> feed_sampled = {0, 1};
  std::vector<char> sample = {1, 1};
  std::vector<char> score = {1, 0};
  std::vector<std::uint32_t> next_token_ids = {39, 77};
  std::vector<std::uint32_t> masks = {1, 2};
  std::vector<std::uint32_t> mask_rows = {ops::kNoMaskRow, 0};

  // Calls with the batch, whose flags it owns.
  void with_batch(const std::function<void(const StepBatch&)>& call) const {
    const std::vector<char>* flags[] = {&feed_sampled, &sample, &score};
    std::unique_ptr<bool[]> owners[3];
    std::span<const bool> views[3];
    for (int i = 0; i < 3; ++i) {
      owners[i] = std::make_unique<bool[]>(flags[i]->size());
      std::copy(flags[i]->begin(), flags[i]->end(), owners[i].get());
      views[i] = {owners[i].get(), flags[i]->size()};
    }
    call({token_ids, query_lens, context_lens, block_tables, stride, seats, views[0], views[1],
          views[2], next_token_ids, masks, mask_rows, false});
  }

  void check() const {
    with_batch([](const StepBatch& batch) {
      const BatchBounds bounds{40, 4, 8, 3, 6, 16};
      const SeatState seats[3] = {SeatState::kBound, SeatState::kFree, SeatState::kFilled};
      bool seen[3] = {};
      check_batch(batch, bounds, seats, seen);
    });
  }
};

std::string error_of(const std::function<void(Arrays&)>& spoil) {
  Arrays arrays;
  spoil(arrays);
  try {
    arrays.check();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidBatch);
    return error.what();
  }
  return "accepted";
}

TEST_CASE("accepts a batch that fits") {
  CHECK(error_of([](Arrays&) {}) == "accepted");
  // Entries of a block table beyond the context, the token of a fed row, and the next token of one
  // that is not scored are not read.
  CHECK(error_of([](Arrays& a) { a.block_tables[3] = ~0U; }) == "accepted");
  CHECK(error_of([](Arrays& a) { a.token_ids[3] = ~0U; }) == "accepted");
  CHECK(error_of([](Arrays& a) { a.next_token_ids[0] = ops::kNoToken; }) == "accepted");
  // A seat that neither samples nor is scored needs no sampler.
  CHECK(error_of([](Arrays& a) {
          a.seats[0] = 1;
          a.sample[0] = a.score[0] = 0;
        }) == "accepted");
}

TEST_CASE("names what does not fit") {
  const std::vector<std::pair<std::function<void(Arrays&)>, std::string>> cases = {
      {[](Arrays& a) { a = Arrays{{}, {}, {}, {}, 0, {}, {}, {}, {}, {}, {}, {}}; }, "token_ids"},
      {[](Arrays& a) { a.token_ids.resize(7); }, "max_step_tokens"},
      {[](Arrays& a) { a.seats.resize(4); }, "max_batch_size"},
      {[](Arrays& a) { a.query_lens.pop_back(); }, "query_lens: expected 2 values, got 1"},
      {[](Arrays& a) { a.context_lens.clear(); }, "context_lens"},
      {[](Arrays& a) { a.block_tables.pop_back(); }, "block_tables"},
      {[](Arrays& a) { a.feed_sampled.pop_back(); }, "feed_sampled"},
      {[](Arrays& a) { a.sample.pop_back(); }, "sample"},
      {[](Arrays& a) { a.score.pop_back(); }, "score"},
      {[](Arrays& a) { a.next_token_ids.pop_back(); }, "next_token_ids"},
      {[](Arrays& a) { a.mask_rows.pop_back(); }, "mask_rows"},
      {[](Arrays& a) { a.masks.pop_back(); }, "masks: expected 0 values, got 1"},
      {[](Arrays& a) { a.masks.resize(6); }, "masks: expected at most one for each sequence"},
      {[](Arrays& a) {
         a.query_lens = {4, 0};
       },
       "query_lens[1]: expected at least 1"},
      {[](Arrays& a) {
         a.query_lens = {2, 1};
       },
       "query_lens: expected a sum of 4, got 3"},
      {[](Arrays& a) {
         a.query_lens = {~0U, 5};
       },
       "query_lens: expected a sum of 4, got 4294967300"},
      {[](Arrays& a) { a.seats[1] = 3; }, "seats[1]: expected less than 3, got 3"},
      {[](Arrays& a) { a.seats[0] = 2; }, "seats[1]: 2 is given twice"},
      {[](Arrays& a) { a.seats[0] = 1; }, "seats[0]: nothing is bound to seat 1"},
      {[](Arrays& a) { a.context_lens[0] = 17; }, "context_lens[0]"},
      {[](Arrays& a) { a.context_lens[0] = 2; }, "context_lens[0]"},
      {[](Arrays& a) { a.context_lens[0] = 9; }, "block_table_stride"},
      {[](Arrays& a) {
         a.stride = 5;
         a.block_tables.resize(10);
       },
       "block_table_stride: expected at most the 4 blocks of max_seq_len, got 5"},
      {[](Arrays& a) { a.block_tables[1] = 8; }, "block_tables[1]"},
      {[](Arrays& a) { a.token_ids[2] = 40; }, "token_ids[2]: expected less than 40, got 40"},
      {[](Arrays& a) { a.next_token_ids[0] = 40; }, "next_token_ids[0]: expected less than 40"},
      {[](Arrays& a) { a.mask_rows[0] = 1; }, "mask_rows[0]: expected less than 1, got 1"},
      {[](Arrays& a) { a.score[1] = 1; }, "score[1]: a fed token is no part of a prompt"},
      {[](Arrays& a) { a.feed_sampled[0] = 1; }, "feed_sampled[0]: expected one query token"},
      {[](Arrays& a) { std::swap(a.seats[0], a.seats[1]); },
       "feed_sampled[1]: nothing was sampled for seat 0"},
  };
  for (const auto& [spoil, expected] : cases) {
    const std::string error = error_of(spoil);
    CHECK_MESSAGE(error.rfind("invalid_batch: ", 0) == 0, error);
    CHECK_MESSAGE(error.find(expected) != std::string::npos, expected << " in " << error);
  }
}

TEST_CASE("positions, slots and the running sum follow from lengths and blocks") {
  Arrays().with_batch([](const StepBatch& batch) {
    std::uint32_t positions[4], slots[4], cu_query_lens[3];
    derive_arrays(batch, 4, {positions, slots, cu_query_lens});
    const std::uint32_t expected_slots[] = {2 * 4 + 3, 1 * 4 + 0, 1 * 4 + 1, 7 * 4 + 0};
    CHECK(std::ranges::equal(positions, std::vector<std::uint32_t>{3, 4, 5, 0}));
    CHECK(std::ranges::equal(slots, expected_slots));
    CHECK(std::ranges::equal(cu_query_lens, std::vector<std::uint32_t>{0, 3, 4}));
    CHECK(batch.num_scored(0) == 3);
    CHECK(batch.num_scored(1) == 0);
  });
  Arrays arrays;
  arrays.next_token_ids[0] = ops::kNoToken;
  arrays.with_batch([](const StepBatch& batch) { CHECK(batch.num_scored(0) == 2); });
}

TEST_CASE("random arrays are refused or accepted, never followed out of bounds") {
  std::mt19937 random(11);
  const auto fill = [&](std::vector<std::uint32_t>& values) {
    if (random() % 4 == 0) values.resize(random() % 6);
    for (auto& value : values) {
      if (random() % 3 == 0) value = random() % 8 == 0 ? random() : random() % 12;
    }
  };
  for (int round = 0; round < 20000; ++round) {
    error_of([&](Arrays& a) {
      fill(a.token_ids);
      fill(a.query_lens);
      fill(a.context_lens);
      fill(a.block_tables);
      fill(a.seats);
      fill(a.next_token_ids);
      fill(a.masks);
      fill(a.mask_rows);
      if (random() % 4 == 0) a.stride = random() % 5 == 0 ? random() : random() % 4;
    });
  }
}

}  // namespace
}  // namespace inferno::engine
