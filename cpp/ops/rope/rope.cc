#include "ops/rope/rope.h"

#include <cmath>
#include <stdexcept>

#include "ops/base/for_each_row.h"

namespace inferno::ops {

namespace {

// Cosines and sines take longer than other elements.
constexpr std::size_t kAnglesPerChunk = 1024;

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
