#include "ops/score/score.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "ops/sample/weight.h"

namespace inferno::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A row and which of its ids have a probability.
struct Row {
  std::span<const float> logits;
  Kept kept;

  bool keeps(std::uint64_t key, float weight) const {
    return weight >= kept.least && key <= kept.last_key;
  }
  // What it counts: 0 for what is dropped.
  std::uint64_t mass_of(std::size_t id, float weight) const {
    return keeps(rank_key(logits[id], id), weight) ? static_cast<std::uint64_t>(weight) : 0;
  }
};

// A part of a row at a time, so that its weights are made as vectors.
std::uint64_t mass_of(const Row& row) {
  constexpr std::size_t kPart = 512;
  std::array<float, kPart> weights;
  const Kept& kept = row.kept;
  const bool counts_all = kept.last_key == kKeepAll && kept.least <= 1;  // less counts nothing
  std::uint64_t mass = 0;
  for (std::size_t begin = 0; begin < row.logits.size(); begin += kPart) {
    const std::size_t size = std::min(kPart, row.logits.size() - begin);
    const float* logits = row.logits.data() + begin;
    for (std::size_t i = 0; i < size; ++i) {
      weights[i] = weight_of((logits[i] - kept.max) * kept.scale);
    }
    for (std::size_t i = 0; i < size; ++i) {
      mass +=
          counts_all ? static_cast<std::uint64_t>(weights[i]) : row.mass_of(begin + i, weights[i]);
    }
  }
  return mass;
}

// The keys of the likeliest ids in order; answers how many there are.
std::uint32_t rank_top(const Row& row, std::span<std::uint64_t> keys) {
  const Kept& kept = row.kept;
  std::uint32_t count = 0;
  float threshold = -kInfinity;  // what is not above it is not among them
  for (std::size_t id = 0; id < row.logits.size(); ++id) {
    const float logit = row.logits[id];
    if (!(logit > threshold)) continue;
    const std::uint64_t key = rank_key(logit, id);
    if (key > kept.last_key) continue;
    if (kept.least > 0 && weight_of((logit - kept.max) * kept.scale) < kept.least) continue;
    if (count < keys.size()) ++count;
    std::uint32_t at = count - 1;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
    if (count == keys.size()) threshold = row.logits[id_of(keys[count - 1])];
  }
  return count;
}

}  // namespace

RowScore score_row(std::span<const float> logits, const Kept* kept, std::uint32_t token_id,
                   std::span<TokenLogit> top) {
  const RowScan scanned = scan_row(logits);
  if (!scanned.valid || scanned.max == -kInfinity) return {};
  const Row row{logits, kept == nullptr ? Kept{.max = scanned.max} : *kept};
  RowScore score{.mass = mass_of(row), .max = row.kept.max, .temperature = row.kept.temperature};
  if (token_id < logits.size()) score.logit = logits[token_id];
  if (top.empty()) return score;
  std::array<std::uint64_t, kMaxTop> keys;
  score.num_top = rank_top(row, std::span(keys).first(top.size()));
  for (std::uint32_t i = 0; i < score.num_top; ++i) {
    top[i] = {id_of(keys[i]), logits[id_of(keys[i])]};
  }
  return score;
}

float logprob_of(const RowScore& score, float logit) {
  if (score.mass == 0) return std::numeric_limits<float>::quiet_NaN();
  const double distance =
      (static_cast<double>(logit) - static_cast<double>(score.max)) / score.temperature;
  return static_cast<float>(distance -
                            std::log(std::ldexp(static_cast<double>(score.mass), -kOctaves)));
}

}  // namespace inferno::ops
