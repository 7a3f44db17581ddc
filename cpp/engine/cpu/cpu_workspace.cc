#include "engine/cpu/cpu_workspace.h"

#include <algorithm>

#include "engine/base/layout.h"
#include "engine/seat_states.h"
#include "ops/attention/attention.h"
#include "ops/experts/experts.h"
#include "ops/linear/linear.h"

namespace inferno::engine {
namespace {

std::uint64_t ops_bytes(const DecoderSpec& spec, const ModelLimits& limits,
                        std::uint32_t num_threads) {
  const LayerMaxima most = maxima_of(spec);
  const std::uint32_t max_columns =
      std::max({spec.hidden_size, most.q_size, most.intermediate_size});
  std::uint64_t bytes =
      ops::linear_workspace_bytes(limits.max_step_tokens, max_columns, num_threads);
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& attention = layer.attention;
    bytes = std::max<std::uint64_t>(
        bytes,
        ops::attention_workspace_bytes({num_threads, limits.max_batch_size, attention.num_heads,
                                        attention.num_kv_heads, attention.head_dim}));
    if (layer.mlp.kind == MlpKind::Dense) continue;
    bytes = std::max<std::uint64_t>(
        bytes, ops::experts_workspace_bytes(experts_shape(spec, layer.mlp), limits.max_step_tokens,
                                            num_threads));
  }
  return bytes;
}

}  // namespace

CpuWorkspace::CpuWorkspace(MemoryPool& pool, const DecoderSpec& spec, const ModelLimits& limits,
                           std::uint32_t num_threads)
    : range_(pool, bytes_needed(spec, limits, num_threads)) {
  place_all(range_.data(), spec, limits, num_threads);
}

std::uint64_t CpuWorkspace::bytes_needed(const DecoderSpec& spec, const ModelLimits& limits,
                                         std::uint32_t num_threads) {
  return CpuWorkspace().place_all(nullptr, spec, limits, num_threads);
}

std::uint64_t CpuWorkspace::place_all(std::byte* base, const DecoderSpec& spec,
                                      const ModelLimits& limits, std::uint32_t num_threads) {
  Layout layout;
  const auto place = [&](auto*& array, std::uint64_t length) {
    const std::uint64_t offset = layout.place(length * sizeof(*array));
    if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + offset);
  };
  const LayerMaxima most = maxima_of(spec);
  const std::uint64_t tokens = limits.max_step_tokens;
  const std::uint64_t rows = std::min(limits.max_batch_size, limits.max_step_tokens);
  place(x, tokens * spec.hidden_size);
  place(h, tokens * spec.hidden_size);
  place(branch, has_branches(spec) ? tokens * spec.hidden_size : 0);
  place(gathered, tokens * most.ordered_columns);
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    place(cos_sin[i], tokens * 2 * spec.ropes[i].inv_freq.size());
    place(query_scale[i], spec.ropes[i].query_beta > 0 ? tokens : 0);
  }
  place(token_ids, tokens);
  place(last, rows * spec.hidden_size);
  place(logits, rows * spec.vocab_size);
  place(sampler.processed, std::uint64_t{num_threads} * spec.vocab_size);
  place(sampler.weights, std::uint64_t{num_threads} * spec.vocab_size);
  place(sampler.ranked, std::uint64_t{num_threads} * spec.vocab_size);
  place_seat_states(place, limits.max_batch_size, spec.vocab_size, sampler.states);

  const std::uint64_t layer = layout.here();
  place(qkv, tokens * most.qkv_size);
  place(attended, tokens * most.q_size);
  place(output_gate, tokens * most.output_gate_size);
  layout.rewind(layer);
  place(gate_up, tokens * 2 * most.intermediate_size);
  place(gated, tokens * most.intermediate_size);
  place(shared_gate, most.has_shared_gate ? tokens : 0);
  place(router_logits, tokens * most.num_experts);
  place(expert_ids, tokens * most.experts_per_token);
  place(expert_weights, tokens * most.experts_per_token);
  layout.join();

  const std::uint64_t scratch = ops_bytes(spec, limits, num_threads);
  const std::uint64_t offset = layout.place(scratch);
  if (base != nullptr) ops = {base + offset, scratch};
  return layout.bytes();
}

// A branch that is not simply added to x stands beside it first.
bool CpuWorkspace::has_branches(const DecoderSpec& spec) {
  return std::any_of(spec.layers.begin(), spec.layers.end(), [](const LayerSpec& layer) {
    return layer.post_attention.is_there() || layer.post_mlp.is_there() ||
           layer.residual_scale != 1 || layer.mlp.kind == MlpKind::Experts;
  });
}

}  // namespace inferno::engine
