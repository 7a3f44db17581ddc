#include "ops/rms_norm/rms_norm.h"

#include <cmath>

#include "ops/base/for_each_row.h"

namespace inferno::ops {

namespace {

float sum_of_squares(const float* x, std::uint32_t size) {
  constexpr std::uint32_t kLanes = 16;
  float lanes[kLanes] = {};
  const std::uint32_t whole = size / kLanes * kLanes;
  for (std::uint32_t i = 0; i < whole; i += kLanes) {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
  }
  for (std::uint32_t i = whole; i < size; ++i) lanes[i - whole] += x[i] * x[i];
  for (std::uint32_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::uint32_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace

void normalize_row(const NormRow& norm, const float* x, float* out) {
  const float mean = sum_of_squares(x, norm.size) / static_cast<float>(norm.size);
  const float scale = 1.0F / std::sqrt(mean + norm.eps);
  if (norm.weight == nullptr) {
    for (std::uint32_t i = 0; i < norm.size; ++i) out[i] = x[i] * scale;
    return;
  }
  for (std::uint32_t i = 0; i < norm.size; ++i) out[i] = x[i] * scale * norm.weight[i];
}

void rms_norm(const OpContext& context, const RmsNormArgs& args) {
  const NormRow norm{args.weight, args.eps, args.hidden_size};
  for_each_row(context, args.num_tokens, args.hidden_size, [&](std::size_t token) {
    const std::size_t start = token * args.hidden_size;
    normalize_row(norm, args.x + start, args.out + start);
  });
}

}  // namespace inferno::ops
