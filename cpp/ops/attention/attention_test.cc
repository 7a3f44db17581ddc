// Goal: attention is right for ragged batches over any blocks, and a query's bits are its own.
// Method: random caches with poison in every slot that must not be read, against float64; the same
// queries in chunks, in batches, in other blocks and on other numbers of threads.
#include "ops/attention/attention.h"

#include <stdexcept>

#include "ops/attention/attention_fixture.h"
#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

void check_batch(Isa isa, const Heads& heads, const std::vector<SequenceLens>& lens) {
  CAPTURE(heads.num_heads);
  CAPTURE(heads.num_kv_heads);
  CAPTURE(heads.head_dim);
  CAPTURE(heads.block_size);
  CAPTURE(std::string(dtype_name(heads.dtype)));
  // Keys and values are of size 1; their rounding is in the reference.
  CHECK(worst_error({isa, 2}, heads, lens) < 4e-6);
}

// A prompt, a decode, a chunk in mid-prompt, nothing, a first token, borders of tiles and blocks.
const std::vector<SequenceLens> kRagged = {{37, 37}, {1, 100}, {20, 75}, {0, 5},
                                           {1, 1},   {1, 32},  {33, 64}, {2, 33}};

void check_own_bits(Isa isa, const Heads& heads) {
  const std::uint32_t length = 150;
  const std::size_t width = 12 * 40;
  std::vector<Sequence> sequences;
  sequences.emplace_back(heads, length, 1);
  Cache cache(heads, {length}, 1);
  cache.write(0, sequences[0], 0, length);
  const auto whole = attend({isa, 1}, heads, cache, sequences, {{length, length}});
  // Chunks of every size, in blocks that hold no more than what was written so far.
  Random random(2);
  for (std::uint32_t round = 0; round < 12; ++round) {
    const std::uint32_t num_threads = round % 4 + 1;
    const std::uint32_t limit = round == 0 ? 1 : random.integer(1, 80);
    Cache chunked(heads, {length}, 20 + round);
    for (std::uint32_t begin = 0; begin < length;) {
      const std::uint32_t end = std::min(length, begin + random.integer(1, limit));
      chunked.write(0, sequences[0], begin, end);
      const auto out = attend({isa, num_threads}, heads, chunked, sequences, {{end - begin, end}});
      REQUIRE(same_bits(out, std::span(whole).subspan(begin * width, out.size())));
      begin = end;
    }
  }
  // In the middle of a batch of others.
  for (std::uint32_t num_threads = 1; num_threads <= 4; ++num_threads) {
    std::vector<Sequence> batch;
    batch.emplace_back(heads, 60, 7);
    batch.push_back(sequences[0]);
    batch.emplace_back(heads, 90, 8);
    Cache shared(heads, {60, length, 90}, 3);
    const std::uint32_t lengths[] = {60, length, 90};
    for (std::size_t s = 0; s < 3; ++s) shared.write(s, batch[s], 0, lengths[s]);
    const auto out =
        attend({isa, num_threads}, heads, shared, batch, {{60, 60}, {40, length}, {1, 90}});
    REQUIRE(same_bits(std::span(out).subspan(60 * width, 40 * width),
                      std::span(whole).subspan((length - 40) * width)));
  }
}

}  // namespace

TEST_CASE("attention agrees with float64 for ragged batches") {
  for_each_isa([](Isa isa) {
    for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Fp8}) {
      check_batch(isa, {8, 2, 64, 16, dtype}, kRagged);
      check_batch(isa, {3, 3, 80, 32, dtype}, kRagged);
      check_batch(isa, {4, 1, 128, 64, dtype}, kRagged);
      check_batch(isa, {10, 1, 6, 5, dtype}, kRagged);
      check_batch(isa, {6, 2, 17, 1, dtype}, kRagged);
      check_batch(isa, {24, 1, 16, 24, dtype}, kRagged);
      check_batch(isa, {4, 2, 256, 16, dtype}, kRagged);
      check_batch(isa, {2, 1, 512, 16, dtype}, kRagged);
    }
    check_batch(isa, {4, 2, 32, 16, Dtype::BF16}, {{150, 150}, {1, 700}, {70, 300}});
  });
}

TEST_CASE("attention reads fp8 with the scales of keys and values") {
  for_each_isa([](Isa isa) {
    for (const std::uint32_t head_dim : {64U, 80U, 17U}) {
      Heads heads{8, 2, head_dim, 16, Dtype::Fp8};
      heads.k_scale = 0.023F;
      heads.v_scale = 0.31F;
      check_batch(isa, heads, kRagged);
      heads.window = 20;
      heads.softcap = 3.0F;
      heads.sinks.assign(8, 0.5F);
      check_batch(isa, heads, kRagged);
    }
  });
}

TEST_CASE("every code of fp8 is read as its number") {
  for_each_isa([](Isa isa) {
    // One position of each code: attention to one alone gives its value.
    Heads heads{1, 1, 16, 16, Dtype::Fp8};
    std::vector<Sequence> sequences;
    sequences.emplace_back(heads, 16, 1);
    Cache cache(heads, {16}, 1);
    cache.write(0, sequences[0], 0, 16);
    for (std::uint32_t code = 0; code < 256; ++code) {
      std::fill_n(cache.layer().v, kv_block_bytes(cache.layer()) * cache.layer().num_blocks,
                  static_cast<std::byte>(code));
      const float expected = e4m3_to_f32(static_cast<std::uint8_t>(code));
      for (const float value : attend({isa, 1}, heads, cache, sequences, {{16, 16}})) {
        REQUIRE(std::isnan(value) == std::isnan(expected));
        if (!std::isnan(expected)) REQUIRE(value == doctest::Approx(expected).epsilon(1e-6));
      }
    }
  });
}

TEST_CASE("a query has the same bits for any chunks, batch, blocks and threads") {
  for_each_isa([](Isa isa) {
    Heads heads{12, 2, 40, 16, Dtype::BF16};
    check_own_bits(isa, heads);
    heads.dtype = Dtype::Fp8;
    heads.k_scale = 0.05F;
    heads.v_scale = 0.2F;
    check_own_bits(isa, heads);
  });
}

TEST_CASE("scores far apart stay finite") {
  for_each_isa([](Isa isa) {
    const Heads heads{1, 1, 16, 16, Dtype::F32};
    std::vector<Sequence> sequences;
    sequences.emplace_back(heads, 70, 1);
    for (float& q : sequences[0].q) q *= 300.0F;
    Cache cache(heads, {70}, 1);
    cache.write(0, sequences[0], 0, 70);
    for (const float value : attend({isa, 2}, heads, cache, sequences, {{70, 70}})) {
      REQUIRE(std::isfinite(value));
    }
  });
}

TEST_CASE("attention refuses arrays that contradict each other") {
  Device device(Isa::Portable, 1, 1 << 20);
  std::vector<std::byte> blocks(4096);
  const KvLayer layer{blocks.data(), blocks.data(), Dtype::F32, 4, 4, 2, 4};
  std::vector<float> q(64);
  std::vector<float> out(64);
  const std::vector<std::uint32_t> tables = {0, 1, 2, 9};
  const auto run = [&](std::uint32_t num_heads, std::vector<std::uint32_t> cu_query_lens,
                       std::vector<std::uint32_t> context_lens, std::uint32_t stride) {
    attention(
        device.context(), layer,
        {q.data(), 16, num_heads, {}, cu_query_lens, context_lens, tables, stride, out.data()});
  };
  run(4, {0, 1}, {12}, 4);
  run(4, {0}, {}, 4);
  CHECK_THROWS_AS(run(3, {0, 1}, {12}, 4), std::invalid_argument);       // heads
  CHECK_THROWS_AS(run(4, {0, 1, 2}, {12}, 4), std::invalid_argument);    // lengths of the arrays
  CHECK_THROWS_AS(run(4, {1, 2}, {12}, 4), std::invalid_argument);       // does not begin with 0
  CHECK_THROWS_AS(run(4, {0, 2, 1}, {2, 2}, 2), std::invalid_argument);  // falls
  CHECK_THROWS_AS(run(4, {0, 2}, {1}, 4), std::invalid_argument);   // more queries than context
  CHECK_THROWS_AS(run(4, {0, 1}, {17}, 4), std::invalid_argument);  // table too short
  CHECK_THROWS_AS(run(4, {0, 1}, {13}, 4), std::invalid_argument);  // block 9
  CHECK_THROWS_AS(run(4, {0, 1, 2}, {1, 1}, 4), std::invalid_argument);  // a table for one only
  Device small(Isa::Portable, 1, 0);
  const std::vector<std::uint32_t> cu{0, 1};
  const std::vector<std::uint32_t> lens{1};
  CHECK_THROWS_AS(
      attention(small.context(), layer, {q.data(), 16, 4, {}, cu, lens, tables, 4, out.data()}),
      std::invalid_argument);
}

}  // namespace inferno::ops::test
