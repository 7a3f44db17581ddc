#include "ops/linear/quantize.h"

#include <algorithm>
#include <cmath>

// The loops below, compiled for wider vectors, too; the loader takes those of the machine. All give
// the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define INFERNO_WIDE_TOO __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define INFERNO_WIDE_TOO
#endif

namespace inferno::ops {

namespace {

// Codes of a group.
struct Group {
  const float* values;
  std::uint32_t length;
  std::uint8_t* codes;
};

constexpr std::uint32_t kLanes = 16;  // sums side by side, for the compiler's vectors

// NaN where one of them is no number or infinite.
INFERNO_WIDE_TOO float largest_magnitude(const Group& group) {
  float largest[kLanes] = {};
  float nothing[kLanes] = {};  // 0 * each: NaN if one is no number or infinite
  const auto add = [&](std::uint32_t i, std::uint32_t lane) {
    const float magnitude = std::fabs(group.values[i]);
    largest[lane] = largest[lane] < magnitude ? magnitude : largest[lane];
    nothing[lane] += magnitude * 0.0F;
  };
  const std::uint32_t whole = group.length / kLanes * kLanes;
  for (std::uint32_t i = 0; i < whole; i += kLanes) {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (std::uint32_t i = whole; i < group.length; ++i) add(i, i - whole);
  float most = 0;
  for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
    most = std::max(most, largest[lane]) + nothing[lane];
  }
  return most;
}

// To the nearest whole number, even of two; for less than 2^22, and unlike nearbyint in the
// baseline's vectors.
float rounded(float value) {
  constexpr float kMagic = 0x1.8p23F;
  return (value + kMagic) - kMagic;
}

// 0 where values are too small for their inverse to be a number: they count as zeros.
float inverse_scale(float levels, float largest) {
  const float inverse = levels / largest;
  return std::isfinite(inverse) ? inverse : 0;
}

float quantize_fp8(const Group& group, float largest) {
  const float inverse = inverse_scale(kE4m3Max, largest);
  for (std::uint32_t i = 0; i < group.length; ++i) {
    group.codes[i] = f32_to_e4m3(group.values[i] * inverse);
  }
  return largest / kE4m3Max;
}

float quantize_int8(const Group& group, float largest) {
  const float inverse = inverse_scale(127, largest);
  for (std::uint32_t i = 0; i < group.length; ++i) {
    const float level = rounded(group.values[i] * inverse);
    group.codes[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(level));
  }
  return largest / 127;
}

// What a scale leaves of a group: with codes q of the values v under it, the best scale for these
// codes is <v, q> / <q, q>, and it explains <v, q>^2 / <q, q> of <v, v>.
struct Fit {
  float product = 0;  // <v, q>
  float square = 0;   // <q, q>

  float explained() const { return square > 0 ? product * product / square : 0; }
};

float level_of(float value, float inverse) {
  return std::clamp(rounded(value * inverse), -8.0F, 7.0F);
}

INFERNO_WIDE_TOO Fit fit_of(const Group& group, float inverse) {
  float products[kLanes] = {};
  float squares[kLanes] = {};
  const auto add = [&](std::uint32_t i, std::uint32_t lane) {
    const float level = level_of(group.values[i], inverse);
    products[lane] += group.values[i] * level;
    squares[lane] += level * level;
  };
  const std::uint32_t whole = group.length / kLanes * kLanes;
  for (std::uint32_t i = 0; i < whole; i += kLanes) {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (std::uint32_t i = whole; i < group.length; ++i) add(i, i - whole);
  Fit fit;
  for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
    fit.product += products[lane];
    fit.square += squares[lane];
  }
  return fit;
}

float quantize_int4(const Group& group, float largest) {
  float scale = 0;
  float inverse = 0;
  float best = 0;
  // The largest magnitude at level 6.5 to 10, on either side: beyond its end it is clipped for the
  // others' sake.
  constexpr int kSteps = 8;
  for (int step = 0; step < 2 * kSteps && largest > 0; ++step) {
    const float levels = 6.5F + 0.5F * static_cast<float>(step % kSteps);
    const float candidate = (step < kSteps ? -levels : levels) / largest;
    const Fit fit = fit_of(group, candidate);
    if (fit.explained() <= best) continue;
    best = fit.explained();
    inverse = candidate;
    scale = fit.product / fit.square;
  }
  for (std::uint32_t i = 0; i < group.length; ++i) {
    group.codes[i] = static_cast<std::uint8_t>(level_of(group.values[i], inverse) + 8);
  }
  return scale;
}

float quantize_group(WeightKind kind, const Group& group) {
  const float largest = largest_magnitude(group);
  if (std::isnan(largest)) {
    std::fill_n(group.codes, group.length, std::uint8_t{0});
    return largest;
  }
  if (kind == WeightKind::Fp8) return quantize_fp8(group, largest);
  return kind == WeightKind::Int8 ? quantize_int8(group, largest) : quantize_int4(group, largest);
}

}  // namespace

void quantize_row(const float* row, std::uint32_t num_columns, const WeightFormat& format,
                  const QuantizedRow& out) noexcept {
  const std::uint32_t length = format.group == 0 ? num_columns : format.group;
  for (std::uint32_t g = 0; g < num_groups(format, num_columns); ++g) {
    const std::uint32_t first = g * length;
    const std::uint32_t count = std::min(length, num_columns - first);
    out.scales[g] = quantize_group(format.kind, {row + first, count, out.codes + first});
  }
}

}  // namespace inferno::ops
