// Goal: no batch that contradicts itself or the model reaches memory. Method: one valid batch of
// two sequences, spoilt in one place at a time; then random rubbish under the sanitizers.
#include "engine/batch.h"

#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "engine/error.h"

namespace inferno::engine {
namespace {

// Owns what StepBatch views.
struct Arrays {
  std::vector<std::uint32_t> token_ids = {5, 6, 7, 9};
  std::vector<std::uint32_t> positions = {3, 4, 5, 0};
  std::vector<std::uint32_t> slot_mapping = {2 * 4 + 3, 1 * 4 + 0, 1 * 4 + 1, 7 * 4 + 0};
  std::vector<std::uint32_t> cu_query_lens = {0, 3, 4};
  std::vector<std::uint32_t> context_lens = {6, 1};
  std::vector<std::uint32_t> block_tables = {2, 1, 7, 99};
  std::uint32_t stride = 2;
  std::vector<std::uint32_t> seats = {0, 2};
  std::vector<char> feed_sampled = {0, 1};
  std::vector<char> sample = {1, 1};
  std::vector<ops::SampleParams> sampling = std::vector<ops::SampleParams>(2);

  void check() const {
    const BatchBounds bounds{10, 4, 8, 3, 6, 16};
    const bool filled[3] = {false, false, true};
    bool seen[3] = {};
    const auto flags = [](const std::vector<char>& chars, std::unique_ptr<bool[]>& owner) {
      owner = std::make_unique<bool[]>(chars.size());
      for (std::size_t i = 0; i < chars.size(); ++i) owner[i] = chars[i] != 0;
      return std::span<const bool>(owner.get(), chars.size());
    };
    std::unique_ptr<bool[]> feed;
    std::unique_ptr<bool[]> wants;
    StepBatch batch{token_ids,    positions,    slot_mapping, cu_query_lens,
                    context_lens, block_tables, stride,       seats,
                    {},           {},           sampling,     false};
    batch.feed_sampled = flags(feed_sampled, feed);
    batch.sample = flags(sample, wants);
    check_batch(batch, bounds, filled, seen);
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
  // Entries of a block table beyond the context, and the token of a fed row, are not read.
  CHECK(error_of([](Arrays& a) { a.block_tables[3] = ~0U; }) == "accepted");
  CHECK(error_of([](Arrays& a) { a.token_ids[3] = ~0U; }) == "accepted");
}

TEST_CASE("names what does not fit") {
  const std::vector<std::pair<std::function<void(Arrays&)>, std::string>> cases = {
      {[](Arrays& a) { a = Arrays{{}, {}, {}, {0}, {}, {}, 0, {}, {}, {}, {}}; }, "token_ids"},
      {[](Arrays& a) { a.token_ids.resize(7); }, "max_step_tokens"},
      {[](Arrays& a) { a.seats.resize(4); }, "max_batch_size"},
      {[](Arrays& a) { a.positions.pop_back(); }, "positions: expected 4 values, got 3"},
      {[](Arrays& a) { a.slot_mapping.push_back(0); }, "slot_mapping"},
      {[](Arrays& a) { a.cu_query_lens.pop_back(); }, "cu_query_lens: expected 3"},
      {[](Arrays& a) { a.context_lens.clear(); }, "context_lens"},
      {[](Arrays& a) { a.block_tables.pop_back(); }, "block_tables"},
      {[](Arrays& a) { a.feed_sampled.pop_back(); }, "feed_sampled"},
      {[](Arrays& a) { a.sample.pop_back(); }, "sample"},
      {[](Arrays& a) { a.sampling.pop_back(); }, "sampling"},
      {[](Arrays& a) {
         a.cu_query_lens = {1, 3, 4};
       },
       "cu_query_lens: expected to run from 0"},
      {[](Arrays& a) {
         a.cu_query_lens = {0, 3, 5};
       },
       "cu_query_lens"},
      {[](Arrays& a) {
         a.cu_query_lens = {0, 4, 4};
       },
       "cu_query_lens[2]"},
      {[](Arrays& a) {
         a.cu_query_lens = {0, ~0U, 4};
       },
       "cu_query_lens[2]"},
      {[](Arrays& a) { a.seats[1] = 3; }, "seats[1]: expected less than 3, got 3"},
      {[](Arrays& a) { a.seats[0] = 2; }, "seats[1]: 2 is given twice"},
      {[](Arrays& a) { a.context_lens[0] = 17; }, "context_lens[0]"},
      {[](Arrays& a) { a.context_lens[0] = 2; }, "context_lens[0]"},
      {[](Arrays& a) { a.context_lens[0] = 9; }, "block_table_stride"},
      {[](Arrays& a) {
         a.stride = 5;
         a.block_tables.resize(10);
       },
       "block_table_stride: expected at most the 4 blocks of max_seq_len, got 5"},
      {[](Arrays& a) { a.block_tables[1] = 8; }, "block_tables[1]"},
      {[](Arrays& a) { a.positions[1] = 5; }, "positions[1]: expected 4"},
      {[](Arrays& a) { a.slot_mapping[2] = 6; }, "slot_mapping[2]: expected 5"},
      {[](Arrays& a) { a.token_ids[2] = 10; }, "token_ids[2]: expected less than 10, got 10"},
      {[](Arrays& a) { a.feed_sampled[0] = 1; }, "feed_sampled[0]: expected one query token"},
      {[](Arrays& a) { a.seats[1] = 1; }, "feed_sampled[1]: nothing was sampled"},
      {[](Arrays& a) { a.sampling[0].temperature = -1; }, "sampling[0].temperature"},
      {[](Arrays& a) { a.sampling[1].temperature = std::numeric_limits<float>::infinity(); },
       "sampling[1].temperature"},
      {[](Arrays& a) { a.sampling[0].top_p = 0; }, "sampling[0].top_p"},
      {[](Arrays& a) { a.sampling[0].top_p = std::numeric_limits<float>::quiet_NaN(); },
       "sampling[0].top_p"},
      {[](Arrays& a) { a.sampling[0].min_p = 1.5F; }, "sampling[0].min_p"},
  };
  for (const auto& [spoil, expected] : cases) {
    const std::string error = error_of(spoil);
    CHECK_MESSAGE(error.rfind("invalid_batch: ", 0) == 0, error);
    CHECK_MESSAGE(error.find(expected) != std::string::npos, expected << " in " << error);
  }
}

TEST_CASE("sampling of a row that does not sample is not read") {
  CHECK(error_of([](Arrays& a) {
          a.sample[0] = 0;
          a.sampling[0].temperature = -1;
        }) == "accepted");
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
      fill(a.positions);
      fill(a.slot_mapping);
      fill(a.cu_query_lens);
      fill(a.context_lens);
      fill(a.block_tables);
      fill(a.seats);
      if (random() % 4 == 0) a.stride = random() % 5 == 0 ? random() : random() % 4;
    });
  }
}

}  // namespace
}  // namespace inferno::engine
