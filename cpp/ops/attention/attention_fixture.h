// What the tests of attention share: sequences, a cache whose unused slots are poison, one step
// over it, and the same in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/attention/attention.h"
#include "ops/base/test_support.h"

namespace inferno::ops::test {

struct Heads {
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t block_size;
  Dtype dtype;
  float scale = 0.0F;  // 0: 1 / sqrt(head_dim)
  std::uint32_t window = 0;
  float softcap = 0.0F;
  std::vector<float> sinks{};  // [num_heads], or none
  float k_scale = 1.0F;        // of fp8
  float v_scale = 1.0F;

  // What the cache has of a number.
  double kept(float value, float scale) const {
    return double{rounded(value / scale, dtype)} * scale;
  }
  AttentionRule rule() const {
    return {scale > 0.0F ? scale : 1.0F / std::sqrt(static_cast<float>(head_dim)), window, softcap,
            sinks.empty() ? nullptr : sinks.data()};
  }
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
      : layer_{nullptr,        nullptr,       heads.dtype,  0, heads.block_size, heads.num_kv_heads,
               heads.head_dim, heads.k_scale, heads.v_scale} {
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

  // Blocks of sequence s wholly before `position` go to others: their entries become any numbers.
  void give_back(std::size_t s, std::uint32_t position) {
    for (std::uint32_t i = 0; i < position / layer_.block_size; ++i) {
      tables_[s * stride_ + i] = i % 2 == 0 ? 0xffffffffU : layer_.num_blocks + i;
    }
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

inline std::size_t workspace_for(const Heads& heads, std::uint32_t num_threads,
                                 std::size_t sequences) {
  return attention_workspace_bytes({num_threads, static_cast<std::uint32_t>(sequences),
                                    heads.num_heads, heads.num_kv_heads, heads.head_dim});
}

// How a step is run.
struct Run {
  Isa isa;
  std::uint32_t num_threads;
};

// Runs one step over the cache: the last query_len positions of each sequence. q [T, stride] has a
// gap behind each row, as if k and v followed.
inline std::vector<float> attend(const Run& run, const Heads& heads, const Cache& cache,
                                 const std::vector<Sequence>& sequences,
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
  Device device(run.isa, run.num_threads, workspace_for(heads, run.num_threads, lens.size()));
  Output out(cu_query_lens.back() * width);
  attention(device.context(), cache.layer(),
            {q.data(), stride, heads.num_heads, heads.rule(), cu_query_lens, context_lens,
             cache.tables(), cache.stride(), out.data()});
  CHECK(out.guards_are_whole());
  return {out.span().begin(), out.span().end()};
}

// Row `position`, head `head` in float64, from the keys and values as the cache rounds them.
inline std::vector<double> reference(const Heads& heads, const Sequence& sequence,
                                     std::uint32_t position, std::uint32_t head) {
  const std::size_t dim = heads.head_dim;
  const std::size_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
  const AttentionRule rule = heads.rule();
  const std::size_t first =
      rule.window > 0 && position >= rule.window ? position - rule.window + 1 : 0;
  const float* q = sequence.q.data() + (std::size_t{position} * heads.num_heads + head) * dim;
  std::vector<double> scores;
  for (std::size_t p = first; p <= position; ++p) {
    const float* k = sequence.k.data() + (p * heads.num_kv_heads + kv_head) * dim;
    double score = 0.0;
    for (std::size_t d = 0; d < dim; ++d) score += q[d] * heads.kept(k[d], heads.k_scale);
    score *= rule.scale;
    scores.push_back(rule.softcap > 0.0F ? rule.softcap * std::tanh(score / rule.softcap) : score);
  }
  double maximum = *std::max_element(scores.begin(), scores.end());
  if (rule.sinks) maximum = std::max(maximum, double{rule.sinks[head]});
  double total = rule.sinks ? std::exp(rule.sinks[head] - maximum) : 0.0;
  std::vector<double> sums(dim, 0.0);
  for (std::size_t p = first; p <= position; ++p) {
    const float* v = sequence.v.data() + (p * heads.num_kv_heads + kv_head) * dim;
    const double weight = std::exp(scores[p - first] - maximum);
    total += weight;
    for (std::size_t d = 0; d < dim; ++d) sums[d] += weight * heads.kept(v[d], heads.v_scale);
  }
  for (double& sum : sums) sum /= total;
  return sums;
}

// The largest difference from float64 of a step of which sequence s has in the cache what its
// tokens see, and nothing else.
inline double worst_error(const Run& run, const Heads& heads,
                          const std::vector<SequenceLens>& lens) {
  std::vector<std::uint32_t> lengths;
  std::vector<Sequence> sequences;
  for (const auto& [query_len, context_len] : lens) {
    lengths.push_back(context_len);
    sequences.emplace_back(heads, context_len, 10 + context_len);
  }
  Cache cache(heads, lengths, 4);
  for (std::size_t s = 0; s < lens.size(); ++s) {
    const std::uint32_t first = heads.rule().first_seen(lengths[s] - lens[s].query_len);
    cache.write(s, sequences[s], first, lengths[s]);
    cache.give_back(s, first);
  }
  const auto out = attend(run, heads, cache, sequences, lens);
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
  return worst;
}

}  // namespace inferno::ops::test
