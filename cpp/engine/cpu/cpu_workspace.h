// Scratch of a forward pass on the CPU: one range of the pool, taken once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cpu/cpu_sampler.h"
#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"

namespace inferno::engine {

class CpuWorkspace {
 public:
  // T: max_step_tokens; R: max_batch_size, at most T; threads: of the device.
  CpuWorkspace(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits,
               std::uint32_t num_threads);

  // What the constructor takes from a pool.
  static std::uint64_t bytes_needed(const DecoderSpec& spec, const ModelLimits& limits,
                                    std::uint32_t num_threads);

  // x is the residual stream, h what the parts of a layer read.
  float* x = nullptr;         // [T, hidden_size]
  float* h = nullptr;         // [T, hidden_size]
  float* gathered = nullptr;  // [T, K] inputs in the order of a matrix, where one has its own
  float* branch = nullptr;    // [T, hidden_size] what a norm or a scale stands before it joins x
  std::array<float*, kMaxRopes> cos_sin{};      // of each rope: [T, 2, rotary_dim / 2]
  std::array<float*, kMaxRopes> query_scale{};  // of each rope that has one: [T]
  // Attention and MLP take turns, so theirs lie over each other; each has the size of the
  // largest layer.
  float* qkv = nullptr;          // [T, q_size + 2 kv_size]
  float* attended = nullptr;     // [T, q_size]
  float* output_gate = nullptr;  // [T, q_size]
  float* gate_up = nullptr;      // [T, 2, dense_size]
  float* gated = nullptr;        // [T, dense_size]
  float* shared_gate = nullptr;  // [T]

  float* router_logits = nullptr;       // [T, experts]
  std::uint32_t* expert_ids = nullptr;  // [T, experts_per_token]
  float* expert_weights = nullptr;      // [T, experts_per_token]

  std::uint32_t* token_ids = nullptr;  // [T] with the fed ones filled in
  float* last = nullptr;               // [R, hidden_size] the last token of each row that samples
  float* logits = nullptr;             // [R, vocab_size]
  CpuSamplerArrays sampler;
  std::span<std::byte> ops;  // the ops' own scratch

  std::span<std::byte> all() const { return {range_.data(), range_.bytes()}; }

 private:
  CpuWorkspace() = default;
  static bool has_branches(const DecoderSpec& spec);
  // Returns the bytes; with a null base only that.
  std::uint64_t place_all(std::byte* base, const DecoderSpec& spec, const ModelLimits& limits,
                          std::uint32_t num_threads);

  PoolRange range_;
};

}  // namespace inferno::engine
