// Scratch of a forward pass on a GPU: one range of the pool, taken once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_sampler.h"
#include "engine/cuda/cuda_step.h"
#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"

namespace inferno::engine {

// Sizes of decode batches for which a graph is recorded, growing; the last is `max_batch_size`. A
// batch runs in the smallest that holds it, padded: close together where a step's time grows with
// its rows.
std::vector<std::uint32_t> decode_graph_sizes(std::uint32_t max_batch_size);

// The same of prompts alone, in tokens, up to `longest`. A longer one is no faster from a graph.
inline constexpr std::uint32_t kMaxPromptGraph = 64;
std::vector<std::uint32_t> prompt_graph_sizes(std::uint32_t longest);

// The largest step that a model of these limits can get.
StepCounts largest_step(const DecoderSpec& spec, const ModelLimits& limits);

class CudaWorkspace {
 public:
  CudaWorkspace(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits);

  // What the constructor takes from a pool.
  static std::uint64_t bytes_needed(const DecoderSpec& spec, const ModelLimits& limits);

  // T, S, R: of largest_step; elements of 16 bits.
  float* x = nullptr;            // [T, hidden_size] the residual stream
  void* h = nullptr;             // [T, hidden_size] elements; what the parts of a layer read
  float* square_sums = nullptr;  // [T, norm_parts(hidden_size)] beside h
  void* gathered = nullptr;      // [T, K] inputs in the order of a matrix, where one has its own
  float* branch = nullptr;       // [T, hidden_size] what a norm stands before it joins x
  std::array<float*, kMaxRopes> cos_sin{};   // of each rope: [T, 2, rotary_dim / 2]
  std::array<float*, kMaxRopes> inv_freq{};  // of each rope: [rotary_dim / 2]
  void* qkv = nullptr;                       // [T, qkv_size] elements
  void* attended = nullptr;                  // [T, q_size] elements
  void* output_gate = nullptr;               // [T, q_size] elements
  void* gate_up = nullptr;                   // [T, 2 dense_size] elements
  void* gated = nullptr;                     // [T, dense_size] elements
  void* shared_gate = nullptr;               // [T] elements
  void* last = nullptr;            // [R, hidden_size] elements; norm(x) of the rows that sample
  float* logits = nullptr;         // [R, vocab_size]
  float* router_logits = nullptr;  // [T, experts]
  std::uint32_t* expert_ids = nullptr;  // [T, experts_per_token]
  float* expert_weights = nullptr;      // [T, experts_per_token]

  std::byte* step = nullptr;              // StepArrays
  std::uint32_t* block_tables = nullptr;  // [S, blocks of max_seq_len]
  CudaSamplerArrays sampler;

  void* linear = nullptr;  // the ops' own, zeroed once
  void* attention = nullptr;
  void* experts = nullptr;

  std::byte* data() const { return range_.data(); }
  std::uint64_t bytes() const { return range_.bytes(); }

 private:
  CudaWorkspace() = default;
  // Returns the bytes; with a null base only that.
  std::uint64_t place_all(std::byte* base, const DecoderSpec& spec, const ModelLimits& limits);

  PoolRange range_;
};

}  // namespace inferno::engine
