#include "ops/rms_norm/rms_norm.h"

#include <algorithm>
#include <cmath>

namespace inferno::ops {

namespace {

constexpr std::uint32_t kLanes = 16;

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::uint32_t kElementsPerChunk = 16384;

float sum_of_squares(const float* x, std::uint32_t size) {
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

void normalize_row(const RmsNormArgs& args, std::uint32_t token) {
  const std::size_t start = std::size_t{token} * args.hidden_size;
  const float* x = args.x + start;
  float* out = args.out + start;
  const float mean = sum_of_squares(x, args.hidden_size) / static_cast<float>(args.hidden_size);
  const float scale = 1.0F / std::sqrt(mean + args.eps);
  for (std::uint32_t i = 0; i < args.hidden_size; ++i) out[i] = x[i] * scale * args.weight[i];
}

template <typename Row>
void for_each_row(const OpContext& context, std::uint32_t num_tokens, std::uint32_t hidden_size,
                  Row row) {
  const std::uint32_t rows_per_chunk = std::max(1U, kElementsPerChunk / std::max(1U, hidden_size));
  const std::uint32_t num_chunks = (num_tokens + rows_per_chunk - 1) / rows_per_chunk;
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::uint32_t end = std::min(num_tokens, (chunk + 1) * rows_per_chunk);
    for (std::uint32_t token = chunk * rows_per_chunk; token < end; ++token) row(token);
  });
}

}  // namespace

void rms_norm(const OpContext& context, const RmsNormArgs& args) {
  for_each_row(context, args.num_tokens, args.hidden_size,
               [&](std::uint32_t token) { normalize_row(args, token); });
}

void add_rms_norm(const OpContext& context, const AddRmsNormArgs& args) {
  const RmsNormArgs norm{args.x,          args.weight,      args.eps,
                         args.num_tokens, args.hidden_size, args.out};
  for_each_row(context, args.num_tokens, args.hidden_size, [&](std::uint32_t token) {
    const std::size_t start = std::size_t{token} * args.hidden_size;
    for (std::size_t i = start; i < start + args.hidden_size; ++i) args.x[i] += args.addend[i];
    normalize_row(norm, token);
  });
}

}  // namespace inferno::ops
