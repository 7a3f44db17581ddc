// Scratch of a forward pass on the CPU: one range of the pool, taken once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cpu/cpu_sampler.h"
#include "engine/memory_pool.h"
#include "engine/shape.h"

namespace inferno::engine {

class CpuWorkspace {
 public:
  // T: max_step_tokens; R: max_batch_size, at most T; threads: of the device.
  CpuWorkspace(MemoryPool& pool, const ModelShape& shape, const ModelLimits& limits,
               std::uint32_t num_threads);

  // What the constructor takes from a pool, in units of 256 bytes for each term:
  //   4 T (2 hidden_size + head_dim + 1 + max(qkv_size + q_size, 3 intermediate_size))
  //   + 4 R (hidden_size + vocab_size) + 16 threads vocab_size + what the ops ask for
  //   + max_batch_size (2.25 vocab_size + what ops/process_logits lets a seat have of lists).
  static std::uint64_t bytes_needed(const ModelShape& shape, const ModelLimits& limits,
                                    std::uint32_t num_threads);

  // x is the residual stream, h what the parts of a layer read.
  float* x = nullptr;        // [T, hidden_size]
  float* h = nullptr;        // [T, hidden_size]
  float* cos_sin = nullptr;  // [T, 2, head_dim / 2]
  // Attention and MLP take turns, so these two pairs lie over each other.
  float* qkv = nullptr;       // [T, q_size + 2 kv_size]
  float* attended = nullptr;  // [T, q_size]
  float* gate_up = nullptr;   // [T, 2, intermediate_size]
  float* gated = nullptr;     // [T, intermediate_size]

  std::uint32_t* token_ids = nullptr;  // [T] with the fed ones filled in
  float* last = nullptr;               // [R, hidden_size] the last token of each row that samples
  float* logits = nullptr;             // [R, vocab_size]
  CpuSamplerArrays sampler;
  std::span<std::byte> ops;  // the ops' own scratch

  std::span<std::byte> all() const { return {range_.data(), range_.bytes()}; }

 private:
  CpuWorkspace() = default;
  // Returns the bytes; with a null base only that.
  std::uint64_t place_all(std::byte* base, const ModelShape& shape, const ModelLimits& limits,
                          std::uint32_t num_threads);

  PoolRange range_;
};

}  // namespace inferno::engine
