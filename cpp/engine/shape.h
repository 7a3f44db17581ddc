// A decoder's shape, what it may take, and what it took.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/base/dtype.h"
#include "ops/base/isa.h"
#include "ops/rope/rope.h"

namespace inferno::engine {

// In the names of the checkpoint's config.json.
struct ModelShape {
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_size = 0;
  std::uint32_t intermediate_size = 0;
  std::uint32_t num_layers = 0;
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  float rms_norm_eps = 0;
  float rope_theta = 0;
  ops::RopeScaling rope_scaling = ops::RopeScaling::None;
  float rope_factor = 1;
  float rope_low_freq_factor = 1;
  float rope_high_freq_factor = 4;
  std::uint32_t rope_original_max_positions = 0;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  ops::Dtype dtype = ops::Dtype::BF16;  // of weights and KV blocks on the device

  std::uint32_t q_size() const { return num_heads * head_dim; }
  std::uint32_t kv_size() const { return num_kv_heads * head_dim; }
  std::uint32_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

struct ModelLimits {
  std::uint32_t block_size = 0;              // positions of one KV block
  std::uint64_t kv_bytes = 0;                // for KV blocks
  std::uint32_t max_batch_size = 0;          // sequences in one step
  std::uint32_t max_step_tokens = 0;         // tokens in one step
  std::uint32_t max_seq_len = 0;             // positions of one sequence
  std::vector<std::uint32_t> end_token_ids;  // held back while a row has suppress_end
};

struct ModelPlan {
  std::uint32_t model = 0;  // the handle for later calls
  std::uint32_t num_blocks = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t kv_bytes = 0;
  std::uint64_t workspace_bytes = 0;
};

// What a pool must have for a model: the sum of these, with as many blocks as wanted.
struct MemoryNeed {
  std::uint64_t weight_bytes = 0;
  std::uint64_t kv_bytes_per_block = 0;
  std::uint64_t workspace_bytes = 0;
};

enum class BackendKind : std::uint8_t { Cpu, Cuda };

// Which kernels attend: Flash the fastest that the device has, Reference the portable ones, one
// query tile at a time, to hold the others against. Auto is Flash.
enum class AttentionBackend : std::uint8_t { Auto, Flash, Reference };

struct DeviceOptions {
  std::uint32_t num_threads = 1;      // of the CPU backend; of loading on a GPU
  ops::Isa isa = ops::Isa::Portable;  // of the CPU backend
  std::uint64_t pool_bytes = 0;       // the one reservation
  BackendKind backend = BackendKind::Cpu;
  std::uint32_t ordinal = 0;  // which GPU, as the CUDA runtime counts them
  AttentionBackend attention = AttentionBackend::Auto;
  bool deterministic = false;  // of a GPU: same tokens alone and in any batch; the CPU always is
};

// Throws other naming the field that is out of range. After it no size computed from the shape
// overflows 64 bits.
void check_shape(const ModelShape& shape);
void check_limits(const ModelLimits& limits, const ModelShape& shape);

// Rotary frequencies [head_dim / 2] of a checked shape.
std::vector<float> inverse_frequencies(const ModelShape& shape);

}  // namespace inferno::engine
