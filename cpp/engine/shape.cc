#include "engine/shape.h"

#include <cmath>
#include <string>

#include "engine/error.h"

namespace inferno::engine {
namespace {

[[noreturn]] void refuse(const std::string& field, const std::string& expected) {
  throw Error(ErrorCode::kOther, field + ": expected " + expected);
}

void check_range(const char* field, std::uint64_t value, std::uint64_t max) {
  if (value >= 1 && value <= max) return;
  refuse(field, "1 to " + std::to_string(max) + ", got " + std::to_string(value));
}

void check_positive(const char* field, float value) {
  if (std::isfinite(value) && value > 0) return;
  refuse(field, "a number above 0, got " + std::to_string(value));
}

void check_rope(const ModelShape& shape) {
  check_positive("rope_theta", shape.rope_theta);
  if (shape.rope_scaling == ops::RopeScaling::None) return;
  if (!std::isfinite(shape.rope_factor) || shape.rope_factor < 1) {
    refuse("rope_factor", "at least 1, got " + std::to_string(shape.rope_factor));
  }
  if (shape.rope_scaling == ops::RopeScaling::Linear) return;
  check_positive("rope_low_freq_factor", shape.rope_low_freq_factor);
  check_positive("rope_high_freq_factor", shape.rope_high_freq_factor);
  if (shape.rope_high_freq_factor <= shape.rope_low_freq_factor) {
    refuse("rope_high_freq_factor", "more than rope_low_freq_factor");
  }
  check_range("rope_original_max_positions", shape.rope_original_max_positions, 1U << 24);
}

}  // namespace

// The bounds are far above any model; their products stay below 2^63.
void check_shape(const ModelShape& shape) {
  check_range("vocab_size", shape.vocab_size, 1U << 22);  // the sampler's sums need it below 2^24
  check_range("hidden_size", shape.hidden_size, 1U << 18);
  check_range("intermediate_size", shape.intermediate_size, 1U << 20);
  check_range("num_layers", shape.num_layers, 1U << 12);
  check_range("num_heads", shape.num_heads, 1U << 10);
  check_range("num_kv_heads", shape.num_kv_heads, shape.num_heads);
  check_range("head_dim", shape.head_dim, 1U << 10);
  if (shape.num_heads % shape.num_kv_heads != 0) {
    refuse("num_kv_heads", "a divisor of num_heads");
  }
  if (shape.head_dim % 2 != 0) refuse("head_dim", "an even number");
  if (!std::isfinite(shape.rms_norm_eps) || shape.rms_norm_eps < 0) {
    refuse("rms_norm_eps", "a number of at least 0");
  }
  check_rope(shape);
}

void check_limits(const ModelLimits& limits, const ModelShape& shape) {
  check_range("block_size", limits.block_size, 1U << 12);
  check_range("max_batch_size", limits.max_batch_size, 1U << 14);
  check_range("max_step_tokens", limits.max_step_tokens, 1U << 20);
  check_range("max_seq_len", limits.max_seq_len, 1U << 24);
  for (const std::uint32_t id : limits.end_token_ids) {
    if (id >= shape.vocab_size) {
      refuse("end_token_ids", "ids below vocab_size, got " + std::to_string(id));
    }
  }
}

std::vector<float> inverse_frequencies(const ModelShape& shape) {
  std::vector<float> inv_freq(shape.head_dim / 2);
  ops::rope_inv_freq(
      {shape.head_dim, shape.rope_theta, shape.rope_scaling, shape.rope_factor,
       shape.rope_low_freq_factor, shape.rope_high_freq_factor, shape.rope_original_max_positions},
      inv_freq);
  return inv_freq;
}

}  // namespace inferno::engine
