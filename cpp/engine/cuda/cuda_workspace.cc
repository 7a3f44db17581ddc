#include "engine/cuda/cuda_workspace.h"

#include <algorithm>

#include "engine/layout.h"
#include "engine/seat_states.h"
#include "ops/attention/cuda/attention_cuda.h"
#include "ops/linear/cuda/linear_cuda.h"
#include "ops/sample/sample_cuda.h"
#include "ops/score/score_cuda.h"

namespace inferno::engine {

std::vector<std::uint32_t> decode_graph_sizes(std::uint32_t max_batch_size) {
  std::vector<std::uint32_t> sizes;
  std::uint32_t size = 1;
  while (size < max_batch_size) {
    sizes.push_back(size);
    if (size < 8) {
      size *= 2;
    } else {
      size += size < 64 ? 8 : size < 256 ? 16 : size / 8;
    }
  }
  sizes.push_back(max_batch_size);
  return sizes;
}

std::vector<std::uint32_t> prompt_graph_sizes(std::uint32_t longest) {
  std::vector<std::uint32_t> sizes;
  for (std::uint32_t size = 8; size <= std::min(longest, kMaxPromptGraph); size += 8) {
    sizes.push_back(size);
  }
  return sizes;
}

StepCounts largest_step(const ModelShape& shape, const ModelLimits& limits) {
  const std::uint32_t seqs = limits.max_batch_size;
  const std::uint32_t tokens = std::max(limits.max_step_tokens, seqs);
  const std::uint32_t rows =
      ops::cuda::attention_tile_rows(shape.head_dim, shape.num_heads, shape.num_kv_heads);
  return {tokens, seqs, seqs, seqs, tokens / rows + seqs};
}

namespace {

// All but the seats' state and `processed`.
template <typename Place>
void place_sampler(Place& place, const StepCounts& most, std::uint32_t vocab_size,
                   CudaSamplerArrays& arrays) {
  const std::uint64_t rows = most.num_rows;
  const std::uint64_t tokens = most.num_tokens;
  place(arrays.masks, rows * ops::mask_words(vocab_size));
  place(arrays.sampled, rows);
  place(arrays.sampled_ids, most.num_seqs);
  place(arrays.kept, rows);
  place(arrays.scores, rows);
  place(arrays.top, rows * ops::kMaxTop);
  ScoredArrays scored;
  place(arrays.scored, ScoredArrays::place(most.num_tokens, nullptr, scored));
  place(arrays.token_scores, tokens);
  place(arrays.token_top, tokens * ops::kMaxTop);
}

}  // namespace

CudaWorkspace::CudaWorkspace(MemoryPool& pool, const ModelShape& shape, const ModelLimits& limits)
    : range_(pool, bytes_needed(shape, limits)) {
  place_all(range_.data(), shape, limits);
}

std::uint64_t CudaWorkspace::bytes_needed(const ModelShape& shape, const ModelLimits& limits) {
  return CudaWorkspace().place_all(nullptr, shape, limits);
}

std::uint64_t CudaWorkspace::place_all(std::byte* base, const ModelShape& shape,
                                       const ModelLimits& limits) {
  constexpr std::uint64_t kElement = 2;
  Layout layout;
  const auto bytes = [&](auto*& array, std::uint64_t length) {
    const std::uint64_t offset = layout.place(length);
    if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + offset);
  };
  const auto opaque = [&](void*& array, std::uint64_t length) {
    const std::uint64_t offset = layout.place(length);
    if (base != nullptr) array = base + offset;
  };
  const StepCounts most = largest_step(shape, limits);
  const std::uint64_t tokens = most.num_tokens;
  const std::uint64_t rows = most.num_rows;
  const std::uint64_t blocks = (limits.max_seq_len + limits.block_size - 1) / limits.block_size;
  bytes(x, tokens * shape.hidden_size * sizeof(float));
  opaque(h, tokens * shape.hidden_size * kElement);
  bytes(square_sums, tokens * ops::cuda::norm_parts(shape.hidden_size) * sizeof(float));
  bytes(cos_sin, tokens * shape.head_dim * sizeof(float));
  opaque(last, rows * shape.hidden_size * kElement);
  bytes(logits, rows * shape.vocab_size * sizeof(float));
  StepArrays arrays;
  bytes(step, StepArrays::place(most, nullptr, arrays));
  bytes(block_tables, most.num_seqs * blocks * sizeof(std::uint32_t));
  bytes(inv_freq, shape.head_dim / 2 * sizeof(float));
  opaque(linear, ops::cuda::LinearCuda::workspace_bytes());
  opaque(attention, ops::cuda::attention_cuda_workspace_bytes(most.num_seqs, shape.num_heads,
                                                              shape.num_kv_heads, shape.head_dim));
  opaque(sampler.sample, ops::cuda::sample_cuda_workspace_bytes(rows, shape.vocab_size));
  opaque(sampler.score, ops::cuda::score_cuda_workspace_bytes(rows, shape.vocab_size));
  const auto place = [&](auto*& array, std::uint64_t length) {
    bytes(array, length * sizeof(*array));
  };
  place_seat_states(place, limits.max_batch_size, shape.vocab_size, sampler.states);
  place_sampler(place, most, shape.vocab_size, sampler);

  // Attention and MLP take turns.
  const std::uint64_t layer = layout.here();
  opaque(qkv, tokens * shape.qkv_size() * kElement);
  opaque(attended, tokens * shape.q_size() * kElement);
  layout.rewind(layer);
  opaque(gate_up, tokens * 2 * shape.intermediate_size * kElement);
  opaque(gated, tokens * shape.intermediate_size * kElement);
  layout.rewind(layer);  // the sampler's turn comes after them
  bytes(sampler.processed, rows * shape.vocab_size * sizeof(float));
  layout.join();
  return layout.bytes();
}

}  // namespace inferno::engine
