// Goal: attention is right for ragged batches over any blocks, and a query's bits are its own.
// Method: random caches with poison in every slot that must not be read, against float64; the same
// queries in chunks, in batches, in other blocks and on other numbers of threads.
#include "ops/attention/attention.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

struct Heads {
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t block_size;
  Dtype dtype;
};

struct SequenceLens {
  std::uint32_t query_len;
  std::uint32_t context_len;
};

// Queries, keys and values of one sequence, at every position of it.
struct Sequence {
  std::vector<float> q;
  std::vector<float> k;
  std::vector<float> v;

  Sequence(const Heads& heads, std::uint32_t length, std::uint32_t seed) {
    Random random(seed);
    q = random.normals(std::size_t{length} * heads.num_heads * heads.head_dim);
    k = random.normals(std::size_t{length} * heads.num_kv_heads * heads.head_dim);
    v = random.normals(std::size_t{length} * heads.num_kv_heads * heads.head_dim);
  }
};

// A cache whose unused slots are NaN, with a table of randomly placed blocks for each sequence.
class Cache {
 public:
  Cache(const Heads& heads, const std::vector<std::uint32_t>& lengths, std::uint32_t seed)
      : layer_{nullptr,       nullptr, heads.dtype, 0, heads.block_size, heads.num_kv_heads,
               heads.head_dim} {
    std::vector<std::uint32_t> num_blocks;
    for (const std::uint32_t length : lengths) {
      num_blocks.push_back((length + heads.block_size - 1) / heads.block_size);
      layer_.num_blocks += num_blocks.back();
      stride_ = std::max(stride_, num_blocks.back());
    }
    layer_.num_blocks += 3;
    stride_ += 1;
    std::vector<std::uint32_t> free;
    for (std::uint32_t id = 0; id < layer_.num_blocks; ++id) free.push_back(id);
    Random(seed).shuffle(free);
    tables_.assign(lengths.size() * stride_, 0xffffffffU);
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (std::uint32_t i = 0; i < num_blocks[s]; ++i) {
        tables_[s * stride_ + i] = free.back();
        free.pop_back();
      }
    }
    const std::size_t bytes = kv_block_bytes(layer_) * layer_.num_blocks;
    k_.assign(bytes, std::byte{0xff});
    v_.assign(bytes, std::byte{0xff});
    layer_.k = k_.data();
    layer_.v = v_.data();
  }

  void write(std::size_t s, const Sequence& sequence, std::uint32_t begin, std::uint32_t end) {
    const std::size_t width = std::size_t{layer_.num_kv_heads} * layer_.head_dim;
    std::vector<std::uint32_t> slots;
    for (std::uint32_t p = begin; p < end; ++p) {
      slots.push_back(tables_[s * stride_ + p / layer_.block_size] * layer_.block_size +
                      p % layer_.block_size);
    }
    Device device(Isa::Portable, 1);
    kv_write(device.context(), layer_,
             {sequence.k.data() + begin * width, sequence.v.data() + begin * width, width, slots});
  }

  const KvLayer& layer() const { return layer_; }
  const std::vector<std::uint32_t>& tables() const { return tables_; }
  std::uint32_t stride() const { return stride_; }

 private:
  KvLayer layer_;
  std::vector<std::byte> k_;
  std::vector<std::byte> v_;
  std::vector<std::uint32_t> tables_;
  std::uint32_t stride_ = 0;
};

std::size_t workspace_for(const Heads& heads, std::uint32_t num_threads, std::size_t sequences) {
  return attention_workspace_bytes({num_threads, static_cast<std::uint32_t>(sequences),
                                    heads.num_heads, heads.num_kv_heads, heads.head_dim});
}

// Runs one step over the cache: the last query_len positions of each sequence. q [T, stride] has a
// gap behind each row, as if k and v followed.
std::vector<float> attend(Isa isa, std::uint32_t num_threads, const Heads& heads,
                          const Cache& cache, const std::vector<Sequence>& sequences,
                          const std::vector<SequenceLens>& lens) {
  const std::size_t width = std::size_t{heads.num_heads} * heads.head_dim;
  const std::size_t stride = width + 24;
  std::vector<std::uint32_t> cu_query_lens{0};
  std::vector<std::uint32_t> context_lens;
  std::vector<float> q;
  for (std::size_t s = 0; s < lens.size(); ++s) {
    cu_query_lens.push_back(cu_query_lens.back() + lens[s].query_len);
    context_lens.push_back(lens[s].context_len);
    for (std::uint32_t p = lens[s].context_len - lens[s].query_len; p < lens[s].context_len; ++p) {
      const float* row = sequences[s].q.data() + p * width;
      q.insert(q.end(), row, row + width);
      q.insert(q.end(), stride - width, kPoison);
    }
  }
  Device device(isa, num_threads, workspace_for(heads, num_threads, lens.size()));
  Output out(cu_query_lens.back() * width);
  const float scale = 1.0F / std::sqrt(static_cast<float>(heads.head_dim));
  attention(device.context(), cache.layer(),
            {q.data(), stride, heads.num_heads, scale, cu_query_lens, context_lens, cache.tables(),
             cache.stride(), out.data()});
  CHECK(out.guards_are_whole());
  return {out.span().begin(), out.span().end()};
}

// Row `position`, head `head` in float64, from the keys and values as the cache rounds them.
std::vector<double> reference(const Heads& heads, const Sequence& sequence, std::uint32_t position,
                              std::uint32_t head) {
  const std::size_t dim = heads.head_dim;
  const std::size_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
  const float* q = sequence.q.data() + (std::size_t{position} * heads.num_heads + head) * dim;
  std::vector<double> scores;
  for (std::size_t p = 0; p <= position; ++p) {
    const float* k = sequence.k.data() + (p * heads.num_kv_heads + kv_head) * dim;
    double score = 0.0;
    for (std::size_t d = 0; d < dim; ++d) score += double{q[d]} * rounded(k[d], heads.dtype);
    scores.push_back(score / std::sqrt(static_cast<double>(dim)));
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  std::vector<double> sums(dim, 0.0);
  for (std::size_t p = 0; p <= position; ++p) {
    const float* v = sequence.v.data() + (p * heads.num_kv_heads + kv_head) * dim;
    const double weight = std::exp(scores[p] - maximum);
    total += weight;
    for (std::size_t d = 0; d < dim; ++d) sums[d] += weight * rounded(v[d], heads.dtype);
  }
  for (double& sum : sums) sum /= total;
  return sums;
}

void check_batch(Isa isa, const Heads& heads, const std::vector<SequenceLens>& lens) {
  CAPTURE(heads.num_heads);
  CAPTURE(heads.num_kv_heads);
  CAPTURE(heads.head_dim);
  CAPTURE(heads.block_size);
  CAPTURE(std::string(dtype_name(heads.dtype)));
  std::vector<std::uint32_t> lengths;
  std::vector<Sequence> sequences;
  for (const auto& [query_len, context_len] : lens) {
    lengths.push_back(context_len);
    sequences.emplace_back(heads, context_len, 10 + context_len);
  }
  Cache cache(heads, lengths, 4);
  for (std::size_t s = 0; s < lens.size(); ++s) cache.write(s, sequences[s], 0, lengths[s]);
  const auto out = attend(isa, 2, heads, cache, sequences, lens);
  std::size_t at = 0;
  double worst = 0.0;
  for (std::size_t s = 0; s < lens.size(); ++s) {
    for (std::uint32_t p = lens[s].context_len - lens[s].query_len; p < lens[s].context_len; ++p) {
      for (std::uint32_t head = 0; head < heads.num_heads; ++head) {
        for (const double expected : reference(heads, sequences[s], p, head)) {
          const double error = std::abs(out[at++] - expected);
          worst = error <= worst ? worst : error;
        }
      }
    }
  }
  CHECK(worst < 4e-6);  // keys and values are of size 1; their rounding is in the reference
}

// A prompt, a decode, a chunk in mid-prompt, nothing, a first token, borders of tiles and blocks.
const std::vector<SequenceLens> kRagged = {{37, 37}, {1, 100}, {20, 75}, {0, 5},
                                           {1, 1},   {1, 32},  {33, 64}, {2, 33}};

}  // namespace

TEST_CASE("attention agrees with float64 for ragged batches") {
  for_each_isa([](Isa isa) {
    for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
      check_batch(isa, {8, 2, 64, 16, dtype}, kRagged);
      check_batch(isa, {3, 3, 80, 32, dtype}, kRagged);
      check_batch(isa, {4, 1, 128, 64, dtype}, kRagged);
      check_batch(isa, {10, 1, 6, 5, dtype}, kRagged);
      check_batch(isa, {6, 2, 17, 1, dtype}, kRagged);
      check_batch(isa, {24, 1, 16, 24, dtype}, kRagged);
    }
    check_batch(isa, {4, 2, 32, 16, Dtype::BF16}, {{150, 150}, {1, 700}, {70, 300}});
  });
}

TEST_CASE("a query has the same bits for any chunks, batch, blocks and threads") {
  for_each_isa([](Isa isa) {
    const Heads heads{12, 2, 40, 16, Dtype::BF16};
    const std::uint32_t length = 150;
    const std::size_t width = 12 * 40;
    std::vector<Sequence> sequences;
    sequences.emplace_back(heads, length, 1);
    Cache cache(heads, {length}, 1);
    cache.write(0, sequences[0], 0, length);
    const auto whole = attend(isa, 1, heads, cache, sequences, {{length, length}});
    // Chunks of every size, in blocks that hold no more than what was written so far.
    Random random(2);
    for (std::uint32_t round = 0; round < 12; ++round) {
      const std::uint32_t num_threads = round % 4 + 1;
      const std::uint32_t limit = round == 0 ? 1 : random.integer(1, 80);
      Cache chunked(heads, {length}, 20 + round);
      for (std::uint32_t begin = 0; begin < length;) {
        const std::uint32_t end = std::min(length, begin + random.integer(1, limit));
        chunked.write(0, sequences[0], begin, end);
        const auto out = attend(isa, num_threads, heads, chunked, sequences, {{end - begin, end}});
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
          attend(isa, num_threads, heads, shared, batch, {{60, 60}, {40, length}, {1, 90}});
      REQUIRE(same_bits(std::span(out).subspan(60 * width, 40 * width),
                        std::span(whole).subspan((length - 40) * width)));
    }
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
    for (const float value : attend(isa, 2, heads, cache, sequences, {{70, 70}})) {
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
        {q.data(), 16, num_heads, 1.0F, cu_query_lens, context_lens, tables, stride, out.data()});
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
      attention(small.context(), layer, {q.data(), 16, 4, 1.0F, cu, lens, tables, 4, out.data()}),
      std::invalid_argument);
}

}  // namespace inferno::ops::test
