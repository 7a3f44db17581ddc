#include "engine/cpu/cpu_workspace.h"

#include <algorithm>

#include "engine/layout.h"
#include "engine/seat_states.h"
#include "ops/attention/attention.h"
#include "ops/linear/linear.h"

namespace inferno::engine {
namespace {

std::uint64_t ops_bytes(const ModelShape& shape, const ModelLimits& limits,
                        std::uint32_t num_threads) {
  const std::uint32_t max_columns =
      std::max({shape.hidden_size, shape.q_size(), shape.intermediate_size});
  const std::uint64_t linear = ops::linear_workspace_bytes(limits.max_step_tokens, max_columns);
  const std::uint64_t attention = ops::attention_workspace_bytes(
      {num_threads, limits.max_batch_size, shape.num_heads, shape.num_kv_heads, shape.head_dim});
  return std::max(linear, attention);
}

}  // namespace

CpuWorkspace::CpuWorkspace(MemoryPool& pool, const ModelShape& shape, const ModelLimits& limits,
                           std::uint32_t num_threads)
    : range_(pool, bytes_needed(shape, limits, num_threads)) {
  place_all(range_.data(), shape, limits, num_threads);
}

std::uint64_t CpuWorkspace::bytes_needed(const ModelShape& shape, const ModelLimits& limits,
                                         std::uint32_t num_threads) {
  return CpuWorkspace().place_all(nullptr, shape, limits, num_threads);
}

std::uint64_t CpuWorkspace::place_all(std::byte* base, const ModelShape& shape,
                                      const ModelLimits& limits, std::uint32_t num_threads) {
  Layout layout;
  const auto place = [&](auto*& array, std::uint64_t length) {
    const std::uint64_t offset = layout.place(length * sizeof(*array));
    if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + offset);
  };
  const std::uint64_t tokens = limits.max_step_tokens;
  const std::uint64_t rows = std::min(limits.max_batch_size, limits.max_step_tokens);
  place(x, tokens * shape.hidden_size);
  place(h, tokens * shape.hidden_size);
  place(cos_sin, tokens * shape.head_dim);
  place(token_ids, tokens);
  place(last, rows * shape.hidden_size);
  place(logits, rows * shape.vocab_size);
  place(sampler.processed, std::uint64_t{num_threads} * shape.vocab_size);
  place(sampler.weights, std::uint64_t{num_threads} * shape.vocab_size);
  place(sampler.ranked, std::uint64_t{num_threads} * shape.vocab_size);
  place_seat_states(place, limits.max_batch_size, shape.vocab_size, sampler.states);

  const std::uint64_t layer = layout.here();
  place(qkv, tokens * shape.qkv_size());
  place(attended, tokens * shape.q_size());
  layout.rewind(layer);
  place(gate_up, tokens * 2 * shape.intermediate_size);
  place(gated, tokens * shape.intermediate_size);
  layout.join();

  const std::uint64_t scratch = ops_bytes(shape, limits, num_threads);
  const std::uint64_t offset = layout.place(scratch);
  if (base != nullptr) ops = {base + offset, scratch};
  return layout.bytes();
}

}  // namespace inferno::engine
