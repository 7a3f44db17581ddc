#include "engine/cuda/cuda_workspace.h"

#include <algorithm>
#include <type_traits>

#include "engine/base/layout.h"
#include "engine/seat_states.h"
#include "ops/attention/cuda/attention_cuda.h"
#include "ops/experts/cuda/experts_cuda.h"
#include "ops/linear/cuda/linear_cuda.h"
#include "ops/sample/sample_cuda.h"
#include "ops/score/score_cuda.h"

namespace inferno::engine {
namespace {

// A branch with a norm of its own stands beside x first.
bool has_branches(const DecoderSpec& spec) {
  return std::any_of(spec.layers.begin(), spec.layers.end(), [](const LayerSpec& layer) {
    return layer.post_attention.is_there() || layer.post_mlp.is_there() ||
           layer.pre_attention.kind != NormKind::Rms || layer.pre_mlp.kind != NormKind::Rms;
  });
}

std::uint64_t attention_bytes(const DecoderSpec& spec) {
  std::uint64_t bytes = 0;
  for (const LayerSpec& layer : spec.layers) {
    bytes = std::max<std::uint64_t>(
        bytes, ops::cuda::attention_cuda_workspace_bytes(layer.attention.head_dim));
  }
  return bytes;
}

std::uint64_t experts_bytes(const DecoderSpec& spec, std::uint32_t max_tokens) {
  const MlpSpec* mlp = first_experts(spec);
  return mlp == nullptr
             ? 0
             : ops::cuda::ExpertsCuda::workspace_bytes(experts_shape(spec, *mlp), max_tokens);
}

}  // namespace

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

StepCounts largest_step(const DecoderSpec& spec, const ModelLimits& limits) {
  const std::uint32_t seqs = limits.max_batch_size;
  const std::uint32_t tokens = std::max(limits.max_step_tokens, seqs);
  const AttentionSpec& attention = spec.layers[0].attention;
  const std::uint32_t rows =
      ops::cuda::attention_tile_rows(attention.num_heads, attention.num_kv_heads);
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

CudaWorkspace::CudaWorkspace(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits)
    : range_(pool, bytes_needed(spec, limits)) {
  place_all(range_.data(), spec, limits);
}

std::uint64_t CudaWorkspace::bytes_needed(const DecoderSpec& spec, const ModelLimits& limits) {
  return CudaWorkspace().place_all(nullptr, spec, limits);
}

std::uint64_t CudaWorkspace::place_all(std::byte* base, const DecoderSpec& spec,
                                       const ModelLimits& limits) {
  constexpr std::uint64_t kElement = 2;
  Layout layout;
  const auto place = [&](auto*& array, std::uint64_t bytes) {
    using Array = std::remove_reference_t<decltype(array)>;
    const std::uint64_t offset = layout.place(bytes);
    if (base != nullptr) array = static_cast<Array>(static_cast<void*>(base + offset));
  };
  const StepCounts most = largest_step(spec, limits);
  const LayerMaxima layers = maxima_of(spec);
  const std::uint64_t tokens = most.num_tokens;
  const std::uint64_t rows = most.num_rows;
  place(x, tokens * spec.hidden_size * sizeof(float));
  place(h, tokens * spec.hidden_size * kElement);
  place(square_sums, tokens * ops::cuda::norm_parts(spec.hidden_size) * sizeof(float));
  place(branch, has_branches(spec) ? tokens * spec.hidden_size * sizeof(float) : 0);
  place(gathered, tokens * layers.ordered_columns * kElement);
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    const std::uint64_t half = spec.ropes[i].inv_freq.size();
    place(cos_sin[i], tokens * 2 * half * sizeof(float));
    place(inv_freq[i], half * sizeof(float));
  }
  place(last, rows * spec.hidden_size * kElement);
  place(logits, rows * spec.vocab_size * sizeof(float));
  StepArrays arrays;
  place(step, StepArrays::place(most, nullptr, arrays));
  place(block_tables, std::uint64_t{most.num_seqs} * limits.max_blocks() * sizeof(std::uint32_t));
  place(linear, ops::cuda::LinearCuda::workspace_bytes(has_codes(spec)));
  place(attention, attention_bytes(spec));
  place(sampler.sample, ops::cuda::sample_cuda_workspace_bytes(most.num_rows, spec.vocab_size));
  place(sampler.score, ops::cuda::score_cuda_workspace_bytes(most.num_rows, spec.vocab_size));
  const auto place_array = [&](auto*& array, std::uint64_t length) {
    place(array, length * sizeof(*array));
  };
  place_seat_states(place_array, limits.max_batch_size, spec.vocab_size, sampler.states);
  place_sampler(place_array, most, spec.vocab_size, sampler);

  // Attention and MLP take turns.
  const std::uint64_t layer = layout.here();
  place(qkv, tokens * layers.qkv_size * kElement);
  place(attended, tokens * layers.q_size * kElement);
  place(output_gate, tokens * layers.output_gate_size * kElement);
  layout.rewind(layer);
  place(gate_up, tokens * 2 * layers.intermediate_size * kElement);
  place(gated, tokens * layers.intermediate_size * kElement);
  place(shared_gate, layers.has_shared_gate ? tokens * kElement : 0);
  place(router_logits, tokens * layers.num_experts * sizeof(float));
  place(expert_ids, tokens * layers.experts_per_token * sizeof(std::uint32_t));
  place(expert_weights, tokens * layers.experts_per_token * sizeof(float));
  place(experts, experts_bytes(spec, most.num_tokens));
  layout.rewind(layer);  // the sampler's turn comes after them
  place(sampler.processed, rows * spec.vocab_size * sizeof(float));
  layout.join();
  return layout.bytes();
}

}  // namespace inferno::engine
