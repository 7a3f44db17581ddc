#include "ops/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace inferno::ops {

namespace {

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::size_t kElementsPerChunk = 16384;
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

void turn_head(float* x, const float* cosine, const float* sine, std::uint32_t half) {
  for (std::uint32_t i = 0; i < half; ++i) {
    const float first = x[i];
    const float second = x[i + half];
    x[i] = first * cosine[i] - second * sine[i];
    x[i + half] = second * cosine[i] + first * sine[i];
  }
}

template <typename Row>
void for_each_token(const OpContext& context, std::size_t num_tokens, std::size_t tokens_per_chunk,
                    Row row) {
  const std::size_t step = std::max<std::size_t>(1, tokens_per_chunk);
  const auto num_chunks = static_cast<std::uint32_t>((num_tokens + step - 1) / step);
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t end = std::min(num_tokens, (chunk + 1) * step);
    for (std::size_t token = chunk * step; token < end; ++token) row(token);
  });
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

void rope_angles(const OpContext& context, std::span<const float> inv_freq,
                 std::span<const std::uint32_t> positions, float* cos_sin) {
  const std::size_t half = inv_freq.size();
  if (half == 0) return;
  for_each_token(context, positions.size(), kAnglesPerChunk / half, [&](std::size_t token) {
    float* row = cos_sin + token * 2 * half;
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[token]) * inv_freq[i];
      row[i] = std::cos(angle);
      row[half + i] = std::sin(angle);
    }
  });
}

void rope(const OpContext& context, const RopeArgs& args) {
  const std::size_t half = args.head_dim / 2;
  const std::size_t row_size = std::size_t{args.num_heads} * args.head_dim;
  if (row_size == 0) return;
  for_each_token(context, args.num_tokens, kElementsPerChunk / row_size, [&](std::size_t token) {
    const float* cosine = args.cos_sin + token * 2 * half;
    float* row = args.x + token * args.row_stride;
    for (std::uint32_t head = 0; head < args.num_heads; ++head) {
      turn_head(row + std::size_t{head} * args.head_dim, cosine, cosine + half,
                static_cast<std::uint32_t>(half));
    }
  });
}

}  // namespace inferno::ops
