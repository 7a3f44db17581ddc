#include "ops/sample/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "ops/sample/weight.h"

namespace inferno::ops {
namespace {

constexpr int kBucketsPerOctave = 64;
constexpr int kNumBuckets = (kOctaves + 1) * kBucketsPerOctave;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Tokens counted by their distance from the best one, so that a filter sorts one bucket and not the
// vocabulary.
struct Histogram {
  std::array<std::uint32_t, kNumBuckets> counts{};
  std::array<std::uint64_t, kNumBuckets> masses{};
  std::uint64_t total_count = 0;
  std::uint64_t total_mass = 0;
};

// One row on its way through the filters.
struct Row {
  std::span<const float> logits;
  const SampleParams& params;
  const SampleScratch& scratch;
  float max;
  float scale;  // of logits, to powers of two

  float log2_weight(float logit) const { return (logit - max) * scale; }
  std::uint64_t weight(std::size_t id) const {
    return static_cast<std::uint64_t>(scratch.weights[id]);
  }
};

void weigh(const Row& row) {
  const float* logits = row.logits.data();
  float* weights = row.scratch.weights.data();
  const std::size_t size = row.logits.size();
  for (std::size_t id = 0; id < size; ++id) {
    weights[id] = weight_of((logits[id] - row.max) * row.scale);
  }
}

int bucket_of(float y) { return static_cast<int>(-y * static_cast<float>(kBucketsPerOctave)); }

Histogram histogram_of(const Row& row) {
  Histogram histogram;
  for (std::size_t id = 0; id < row.logits.size(); ++id) {
    const std::uint64_t weight = row.weight(id);
    if (weight == 0) continue;
    const auto bucket = static_cast<std::size_t>(bucket_of(row.log2_weight(row.logits[id])));
    histogram.counts[bucket] += 1;
    histogram.masses[bucket] += weight;
    histogram.total_count += 1;
    histogram.total_mass += weight;
  }
  return histogram;
}

// The tokens of one bucket in rank order.
std::span<const std::uint64_t> rank_bucket(const Row& row, std::size_t bucket) {
  std::size_t count = 0;
  for (std::size_t id = 0; id < row.logits.size(); ++id) {
    if (row.weight(id) == 0) continue;
    const int found = bucket_of(row.log2_weight(row.logits[id]));
    if (static_cast<std::size_t>(found) != bucket) continue;
    row.scratch.ranked[count++] = rank_key(row.logits[id], id);
  }
  const auto ranked = row.scratch.ranked.first(count);
  std::sort(ranked.begin(), ranked.end());
  return ranked;
}

struct Cut {
  std::uint64_t key = kKeepAll;  // the last key that is kept
  std::uint64_t mass = 0;        // of all that is kept
};

Cut cut_by_count(const Row& row, const Histogram& histogram) {
  const std::uint64_t k = row.params.top_k;
  if (k == 0 || k >= histogram.total_count) return {kKeepAll, histogram.total_mass};
  std::uint64_t count = 0;
  std::uint64_t mass = 0;
  std::size_t bucket = 0;
  while (count + histogram.counts[bucket] < k) {
    count += histogram.counts[bucket];
    mass += histogram.masses[bucket];
    ++bucket;
  }
  const auto ranked = rank_bucket(row, bucket).first(k - count);
  for (const std::uint64_t key : ranked) mass += row.weight(id_of(key));
  return {ranked.back(), mass};
}

// The shortest run of the ranking, from its top, that holds top_p of what top-k kept.
std::uint64_t cut_by_mass(const Row& row, const Histogram& histogram, const Cut& kept) {
  if (!(row.params.top_p < 1)) return kept.key;
  const double wanted = static_cast<double>(row.params.top_p) * static_cast<double>(kept.mass);
  const std::uint64_t target =
      std::clamp<std::uint64_t>(static_cast<std::uint64_t>(wanted), 1, kept.mass);
  std::uint64_t mass = 0;
  std::size_t bucket = 0;
  while (mass + histogram.masses[bucket] < target) mass += histogram.masses[bucket++];
  for (const std::uint64_t key : rank_bucket(row, bucket)) {
    mass += row.weight(id_of(key));
    if (mass >= target) return key;
  }
  return kept.key;  // not reached: the bucket's mass is the sum of these weights
}

// Zeroes the weight of what the filters drop. Answers the last key that is kept.
std::uint64_t filter(const Row& row) {
  const bool by_rank = row.params.top_k != 0 || row.params.top_p < 1;
  std::uint64_t last_key = kKeepAll;
  if (by_rank) {
    const Histogram histogram = histogram_of(row);
    last_key = cut_by_mass(row, histogram, cut_by_count(row, histogram));
  }
  const float least = row.params.min_p * std::ldexp(1.0F, kOctaves);
  for (std::size_t id = 0; id < row.logits.size(); ++id) {
    float& weight = row.scratch.weights[id];
    if (weight < least || (by_rank && rank_key(row.logits[id], id) > last_key)) weight = 0;
  }
  return last_key;
}

std::uint64_t random_of(const SampleParams& params) {
  const auto words = philox4x32(
      {params.position, 0, 0, 0},
      {static_cast<std::uint32_t>(params.seed), static_cast<std::uint32_t>(params.seed >> 32)});
  return static_cast<std::uint64_t>(words[1]) << 32 | words[0];
}

// The high 64 bits of a product.
std::uint64_t high_product(std::uint64_t random, std::uint64_t total) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Wide>(random) * total) >> 64);
}

std::uint32_t draw(const Row& row) {
  std::uint64_t total = 0;
  for (std::size_t id = 0; id < row.logits.size(); ++id) total += row.weight(id);
  const std::uint64_t target = high_product(random_of(row.params), total);
  std::uint64_t sum = 0;
  std::size_t id = 0;
  while ((sum += row.weight(id)) <= target) ++id;
  return static_cast<std::uint32_t>(id);
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

Sampled sample_row(std::span<const float> logits, const SampleParams& params,
                   const SampleScratch& scratch, Kept* kept) {
  const RowScan scanned = scan_row(logits);
  if (!scanned.valid) return {SampleStatus::kNotANumber, 0};
  const float max = scanned.max;
  if (max == -kInfinity) return {SampleStatus::kNothingLeft, 0};
  if (kept != nullptr) *kept = {.max = max};
  if (params.temperature == 0) {
    const auto best = std::find(logits.begin(), logits.end(), max);
    return {SampleStatus::kOk, static_cast<std::uint32_t>(best - logits.begin())};
  }
  // Finite even for the smallest temperatures: 0 times it must stay 0.
  const float scale = std::min(kLog2E / params.temperature, std::numeric_limits<float>::max());
  const Row row{logits, params, scratch, max, scale};
  weigh(row);
  std::uint64_t last_key = kKeepAll;
  if (params.top_k != 0 || params.top_p < 1 || params.min_p > 0) last_key = filter(row);
  if (kept != nullptr) {
    const float least = std::max(std::ldexp(params.min_p, kOctaves), 1.0F);
    *kept = {max, params.temperature, scale, least, last_key};
  }
  return {SampleStatus::kOk, draw(row)};
}

}  // namespace inferno::ops
