#include "engine/weights/random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace inferno::engine {
namespace {

// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", OOPSLA 2014).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15U;

// x with P(normal < x) = p, by bisection: it runs 4,096 times for each table and needs no
// constants.
double normal_quantile(double p) {
  double low = -10;
  double high = 10;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    const double below = 0.5 * std::erfc(-middle / std::numbers::sqrt2);
    (below < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

template <typename Element>
void fill_as(const std::byte* table, std::uint64_t key, std::uint64_t first,
             std::span<std::byte> out) {
  const std::size_t count = out.size() / sizeof(Element);
  for (std::size_t i = 0; i < count; i += 4) {
    std::uint64_t word = mix(key + (first + i) / 4 * kGamma);
    const std::size_t end = std::min<std::size_t>(4, count - i);
    for (std::size_t j = 0; j < end; ++j, word >>= 16) {
      std::memcpy(out.data() + (i + j) * sizeof(Element), table + (word & 0xFFF) * sizeof(Element),
                  sizeof(Element));
    }
  }
}

}  // namespace

NormalTable::NormalTable(float deviation, ops::Dtype dtype) : deviation_(deviation), dtype_(dtype) {
  for (std::size_t i = 0; i < kSteps / 2; ++i) {
    const double p = (static_cast<double>(i) + 0.5) / kSteps;
    const auto value = static_cast<float>(normal_quantile(p) * deviation);
    ops::store_element(values_.data(), dtype, i, value);
    ops::store_element(values_.data(), dtype, kSteps - 1 - i, -value);
  }
}

void NormalTable::fill(std::uint64_t key, std::uint64_t first, std::span<std::byte> out) const {
  if (dtype_ == ops::Dtype::F32) {
    fill_as<std::uint32_t>(values_.data(), key, first, out);
  } else {
    fill_as<std::uint16_t>(values_.data(), key, first, out);
  }
}

std::uint64_t tensor_key(std::uint64_t seed, std::uint64_t tensor) {
  return mix(mix(seed + kGamma) + tensor * kGamma);
}

}  // namespace inferno::engine
