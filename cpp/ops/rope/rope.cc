#include "ops/rope/rope.h"

#include <cmath>
#include <numbers>
#include <stdexcept>

#include "ops/base/for_each_row.h"

namespace inferno::ops {

namespace {

// Cosines and sines take longer than other elements.
constexpr std::size_t kAnglesPerChunk = 1024;

float scale_llama3(const RopeConfig& config, float inv_freq) {
  const auto original = static_cast<float>(config.original_max_positions);
  const float wavelength = 2.0F * std::numbers::pi_v<float> / inv_freq;
  if (wavelength > original / config.low_freq_factor) return inv_freq / config.factor;
  if (wavelength < original / config.high_freq_factor) return inv_freq;
  const float smooth = (original / wavelength - config.low_freq_factor) /
                       (config.high_freq_factor - config.low_freq_factor);
  return (1.0F - smooth) * inv_freq / config.factor + smooth * inv_freq;
}

void check(const RopeConfig& config, std::size_t length) {
  if (config.head_dim % 2 != 0 || length != config.head_dim / 2) {
    throw std::invalid_argument(
        "other: rope: expected an even head_dim and head_dim / 2 frequencies");
  }
  if (config.scaling != RopeScaling::None && !(config.factor >= 1.0F)) {
    throw std::invalid_argument("other: rope: expected a factor of at least 1");
  }
  if (config.scaling == RopeScaling::Llama3 &&
      !(config.low_freq_factor > 0.0F && config.high_freq_factor > config.low_freq_factor)) {
    throw std::invalid_argument(
        "other: rope: expected high_freq_factor above low_freq_factor above 0");
  }
}

void turn_halves(float* x, const float* cosine, const float* sine, std::uint32_t half) {
  for (std::uint32_t i = 0; i < half; ++i) {
    const float first = x[i];
    const float second = x[i + half];
    x[i] = first * cosine[i] - second * sine[i];
    x[i + half] = second * cosine[i] + first * sine[i];
  }
}

void turn_pairs(float* x, const float* cosine, const float* sine, std::uint32_t half) {
  for (std::uint32_t i = 0; i < half; ++i) {
    const float first = x[2 * i];
    const float second = x[2 * i + 1];
    x[2 * i] = first * cosine[i] - second * sine[i];
    x[2 * i + 1] = second * cosine[i] + first * sine[i];
  }
}

}  // namespace

void rope_inv_freq(const RopeConfig& config, std::span<float> inv_freq) {
  check(config, inv_freq.size());
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float value = 1.0F / std::pow(config.theta, exponent);
    if (config.scaling == RopeScaling::Linear) value /= config.factor;
    if (config.scaling == RopeScaling::Llama3) value = scale_llama3(config, value);
    inv_freq[i] = value;
  }
}

void rope_angles(const OpContext& context, const RopeAnglesArgs& args) {
  const std::size_t half = args.inv_freq.size();
  const auto fill = [&](std::size_t token) {
    float* row = args.cos_sin + token * 2 * half;
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(args.positions[token]) * args.inv_freq[i];
      row[i] = std::cos(angle) * args.scale;
      row[half + i] = std::sin(angle) * args.scale;
    }
  };
  for_each_row(context, args.positions.size(), half, fill, kAnglesPerChunk);
}

void rope(const OpContext& context, const RopeArgs& args) {
  if (args.rotary_dim % 2 != 0 || args.rotary_dim > args.head_dim) {
    throw std::invalid_argument("other: rope: expected an even rotary_dim of at most head_dim");
  }
  const std::uint32_t half = args.rotary_dim / 2;
  const std::size_t row_size = std::size_t{args.num_heads} * args.head_dim;
  const auto turn = args.interleaved ? turn_pairs : turn_halves;
  for_each_row(context, args.num_tokens, row_size, [&](std::size_t token) {
    const float* cosine = args.cos_sin + token * args.rotary_dim;
    float* row = args.x + token * args.row_stride;
    for (std::uint32_t head = 0; head < args.num_heads; ++head) {
      turn(row + std::size_t{head} * args.head_dim, cosine, cosine + half, half);
    }
    if (args.head_scale == nullptr) return;
    for (std::size_t i = 0; i < row_size; ++i) row[i] *= args.head_scale[token];
  });
}

}  // namespace inferno::ops
