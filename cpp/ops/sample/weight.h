// The weights and ranks of sample.h, as the ops on the CPU share them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace inferno::ops {

inline constexpr int kOctaves = 40;  // a token less than 2^-40 as likely as the best weighs nothing

// 2^40 * 2^y for y in (-41, 0], at least 0.5; whole numbers are taken of it where it is summed. The
// polynomial is 2^f = exp(f ln 2) by its series, |error| < 2e-7. No branches: the loop over a row
// becomes vectors.
inline float weight_of(float y) {
  constexpr float kLowest = -static_cast<float>(kOctaves + 1);  // 2^40 * 2^-41 counts as 0
  const float clamped = y > kLowest ? y : kLowest;
  const int whole = static_cast<int>(clamped);  // towards zero: f in (-1, 0]
  const float f = clamped - static_cast<float>(whole);
  float p = 1.3215487e-6F;  // (ln 2)^n / n!, from n = 8 down
  p = p * f + 1.5252734e-5F;
  p = p * f + 1.5403530e-4F;
  p = p * f + 1.3333558e-3F;
  p = p * f + 9.6181291e-3F;
  p = p * f + 5.5504109e-2F;
  p = p * f + 2.4022651e-1F;
  p = p * f + 6.9314718e-1F;
  p = p * f + 1.0F;
  const float power = std::bit_cast<float>((whole + kOctaves + 127) << 23);
  return p * power;
}

// Smaller is ranked higher: by logit downwards, then by id upwards.
inline std::uint64_t rank_key(float logit, std::size_t id) {
  const auto bits = std::bit_cast<std::uint32_t>(logit + 0.0F);  // -0 equals +0
  const std::uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<std::uint64_t>(~ascending) << 32 | static_cast<std::uint32_t>(id);
}

inline std::uint32_t id_of(std::uint64_t key) { return static_cast<std::uint32_t>(key); }

struct RowScan {
  float max;
  bool valid;  // no NaN, no +infinity
};

inline RowScan scan_row(std::span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr std::size_t kLanes = 16;  // independent lanes, so that the compiler may use vectors
  std::array<float, kLanes> best;
  best.fill(-kInfinity);
  std::array<std::uint32_t, kLanes> bad{};
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      best[lane] = x > best[lane] ? x : best[lane];
      bad[lane] |= x < kInfinity ? 0U : 1U;
    }
  }
  for (; i < logits.size(); ++i) {
    best[0] = logits[i] > best[0] ? logits[i] : best[0];
    bad[0] |= logits[i] < kInfinity ? 0U : 1U;
  }
  return {*std::max_element(best.begin(), best.end()),
          std::all_of(bad.begin(), bad.end(), [](std::uint32_t b) { return b == 0; })};
}

}  // namespace inferno::ops
