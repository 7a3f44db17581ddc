// Goal: windows, soft-caps and sinks are right in every mixture, and a windowed query needs nothing
// but what it sees. Method: caches that hold what a step sees and poison beside it, tables whose
// blocks before the window are any numbers, against float64; chunks against decodes bit by bit.
#include <stdexcept>

#include "ops/attention/attention_fixture.h"

namespace inferno::ops::test {

namespace {

// Smaller than a tile, of one, beside its borders, of several, larger than any context here.
constexpr std::uint32_t kWindows[] = {1, 5, 31, 32, 33, 70, 1000};

// Prompts, decodes, chunks in mid-prompt, nothing; on both sides of the borders of tiles.
const std::vector<SequenceLens> kLens = {{70, 70}, {1, 150}, {33, 170}, {0, 64},  {1, 64},
                                         {1, 65},  {33, 97}, {1, 1},    {34, 140}};

std::vector<Heads> shapes() {
  return {{8, 2, 64, 16, Dtype::BF16},   // the usual
          {3, 3, 24, 32, Dtype::F32},    // no groups
          {10, 1, 40, 5, Dtype::F16},    // a group cut in two; blocks beside tiles
          {4, 1, 256, 64, Dtype::BF16},  // blocks of two tiles
          {2, 2, 16, 1, Dtype::BF16}};
}

void check_rule(Isa isa, const Heads& heads, double limit) {
  CAPTURE(heads.num_heads);
  CAPTURE(heads.head_dim);
  CAPTURE(heads.block_size);
  CAPTURE(heads.window);
  CAPTURE(heads.softcap);
  CHECK(worst_error({isa, 2}, heads, kLens) < limit);
}

// About as large as the scores, some far above and below.
std::vector<float> sinks_for(const Heads& heads) {
  auto sinks = Random(5).normals(heads.num_heads);
  sinks[0] = 9.0F;
  sinks.back() = -40.0F;
  return sinks;
}

Heads with_all(Heads heads, std::uint32_t window) {
  heads.window = window;
  heads.softcap = 3.0F;
  heads.sinks = sinks_for(heads);
  return heads;
}

}  // namespace

TEST_CASE("a window is seen and nothing before it") {
  for_each_isa([](Isa isa) {
    for (Heads heads : shapes()) {
      for (const std::uint32_t window : kWindows) {
        heads.window = window;
        check_rule(isa, heads, 4e-6);
      }
    }
  });
}

TEST_CASE("capped scores agree with float64, near 0 and where the cap bites") {
  for_each_isa([](Isa isa) {
    for (Heads heads : shapes()) {
      heads.softcap = 50.0F;
      check_rule(isa, heads, 4e-6);
      heads.softcap = 1.5F;
      check_rule(isa, heads, 4e-6);
      heads.softcap = 50.0F;
      heads.scale = 3.0F;  // scores of 100 and more
      check_rule(isa, heads, 1e-4);
    }
  });
}

TEST_CASE("sinks take their share of the softmax") {
  for_each_isa([](Isa isa) {
    for (Heads heads : shapes()) {
      heads.sinks = sinks_for(heads);
      check_rule(isa, heads, 4e-6);
    }
  });
}

TEST_CASE("window, cap and sinks hold together") {
  for_each_isa([](Isa isa) {
    for (const Heads& heads : shapes()) {
      for (const std::uint32_t window : kWindows) check_rule(isa, with_all(heads, window), 4e-6);
    }
  });
}

TEST_CASE("a windowed query has the same bits for any chunks, alone, in a batch and as a decode") {
  const std::uint32_t length = 150;
  for_each_isa([&](Isa isa) {
    for (const std::uint32_t window : kWindows) {
      CAPTURE(window);
      const Heads heads = with_all({12, 2, 40, 16, Dtype::BF16}, window);
      const std::size_t width = 12 * 40;
      std::vector<Sequence> sequences;
      sequences.emplace_back(heads, length, 1);
      Cache cache(heads, {length}, 1);
      cache.write(0, sequences[0], 0, length);
      const auto whole = attend({isa, 1}, heads, cache, sequences, {{length, length}});
      Random random(2);
      for (const std::uint32_t limit : {1U, 7U, 64U, 100U}) {
        for (std::uint32_t begin = 0; begin < length;) {
          const std::uint32_t end = std::min(length, begin + random.integer(1, limit));
          const std::uint32_t first = heads.rule().first_seen(begin);
          Cache chunk(heads, {length}, 20 + begin);  // holds what the chunk sees, and nothing else
          chunk.write(0, sequences[0], first, end);
          chunk.give_back(0, first);
          const auto out =
              attend({isa, limit % 4 + 1}, heads, chunk, sequences, {{end - begin, end}});
          REQUIRE(same_bits(out, std::span(whole).subspan(begin * width, out.size())));
          begin = end;
        }
      }
      std::vector<Sequence> batch;
      batch.emplace_back(heads, 60, 7);
      batch.push_back(sequences[0]);
      Cache shared(heads, {60, length}, 3);
      shared.write(0, batch[0], 0, 60);
      shared.write(1, batch[1], 0, length);
      const auto out = attend({isa, 3}, heads, shared, batch, {{60, 60}, {40, length}});
      REQUIRE(same_bits(std::span(out).subspan(60 * width),
                        std::span(whole).subspan((length - 40) * width)));
    }
  });
}

TEST_CASE("a window larger than the context has the bits of none") {
  for_each_isa([](Isa isa) {
    Heads heads{8, 2, 64, 16, Dtype::BF16};
    std::vector<Sequence> sequences;
    sequences.emplace_back(heads, 100, 1);
    Cache cache(heads, {100}, 1);
    cache.write(0, sequences[0], 0, 100);
    const auto all = attend({isa, 1}, heads, cache, sequences, {{100, 100}});
    for (const std::uint32_t window : {100U, 0xffffffffU}) {
      heads.window = window;
      CHECK(same_bits(all, attend({isa, 1}, heads, cache, sequences, {{100, 100}})));
    }
  });
}

TEST_CASE("a block id is refused where a query sees its block, and only there") {
  const auto run = [](std::uint32_t window, std::uint32_t query_len, std::uint32_t position) {
    Heads heads{2, 1, 16, 16, Dtype::F32};
    heads.window = window;
    std::vector<Sequence> sequences;
    sequences.emplace_back(heads, 64, 1);
    Cache cache(heads, {64}, 1);
    cache.write(0, sequences[0], 0, 64);
    cache.give_back(0, position);
    attend({Isa::Portable, 1}, heads, cache, sequences, {{query_len, 64}});
  };
  run(16, 1, 48);
  run(17, 1, 47);
  run(16, 17, 32);
  CHECK_THROWS_AS(run(17, 1, 48), std::invalid_argument);
  CHECK_THROWS_AS(run(16, 2, 48), std::invalid_argument);
  CHECK_THROWS_AS(run(0, 1, 16), std::invalid_argument);
}

}  // namespace inferno::ops::test
