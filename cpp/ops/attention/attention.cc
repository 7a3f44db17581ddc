#include "ops/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "ops/attention/attention_task.h"

namespace inferno::ops {

namespace {

// Floats of scratch per thread: a tile of keys and of values, and for each row its query, its
// scores, its output and three scalars.
std::size_t scratch_floats(std::size_t head_dim) {
  const std::size_t padded = round_up(head_dim, 16);
  return 2 * kPositionTile * padded + kMaxTaskRows * (2 * padded + kPositionTile + 3);
}

std::size_t task_table_bytes(std::size_t num_sequences) {
  return round_up((num_sequences + 1) * sizeof(std::uint32_t), kAlignment);
}

[[noreturn]] void refuse(const std::string& text) {
  throw std::invalid_argument("invalid_batch: attention: " + text);
}

void check(const KvLayer& layer, const AttentionArgs& args) {
  if (layer.num_kv_heads == 0 || args.num_heads % layer.num_kv_heads != 0) {
    refuse("num_heads must be a multiple of num_kv_heads");
  }
  const std::size_t num_sequences = args.context_lens.size();
  if (args.cu_query_lens.size() != num_sequences + 1 || args.cu_query_lens[0] != 0) {
    refuse("cu_query_lens must have one entry more than context_lens and begin with 0");
  }
  if (args.block_tables.size() < num_sequences * args.block_table_stride) {
    refuse("block_tables is shorter than its rows");
  }
  for (std::size_t s = 0; s < num_sequences; ++s) {
    const std::uint32_t begin = args.cu_query_lens[s];
    const std::uint32_t end = args.cu_query_lens[s + 1];
    const std::uint32_t context_len = args.context_lens[s];
    if (end < begin || end - begin > context_len) {
      refuse("sequence " + std::to_string(s) + ": expected 0 <= query_len <= context_len");
    }
    if (end == begin) continue;
    const std::size_t num_blocks =
        (std::size_t{context_len} + layer.block_size - 1) / layer.block_size;
    if (num_blocks > args.block_table_stride) {
      refuse("sequence " + std::to_string(s) + ": the block table is shorter than the context");
    }
    // Blocks before the first that is seen may belong to others by now.
    const std::size_t first_block =
        args.rule.first_seen(context_len - (end - begin)) / layer.block_size;
    const auto table = args.block_tables.subspan(s * args.block_table_stride + first_block,
                                                 num_blocks - first_block);
    if (std::any_of(table.begin(), table.end(),
                    [&](std::uint32_t id) { return id >= layer.num_blocks; })) {
      refuse("sequence " + std::to_string(s) + ": a block id is not below num_blocks");
    }
  }
}

// How the calls' work is cut: sequence by sequence into query tiles, each for every share of the
// heads.
struct TaskCut {
  std::uint32_t heads_per_task;
  std::uint32_t tokens_per_task;
  std::uint32_t shares_per_kv_head;
  std::uint32_t tasks_per_tile;

  TaskCut(const KvLayer& layer, std::uint32_t num_heads) {
    const std::uint32_t group = num_heads / layer.num_kv_heads;
    heads_per_task = std::min(group, kMaxTaskHeads);
    tokens_per_task = kMaxTaskRows / heads_per_task;
    shares_per_kv_head = (group + heads_per_task - 1) / heads_per_task;
    tasks_per_tile = shares_per_kv_head * layer.num_kv_heads;
  }

  std::uint32_t num_tiles(std::uint32_t query_len) const {
    return (query_len + tokens_per_task - 1) / tokens_per_task;
  }
};

// Task `index` of sequence s.
AttentionTask make_task(const KvLayer& layer, const AttentionArgs& args, std::size_t s,
                        std::uint32_t index) {
  const TaskCut cut(layer, args.num_heads);
  const std::uint32_t first_row = args.cu_query_lens[s];
  const std::uint32_t query_len = args.cu_query_lens[s + 1] - first_row;
  // The last tile has the most positions to read, so it comes first.
  const std::uint32_t tile = cut.num_tiles(query_len) - 1 - index / cut.tasks_per_tile;
  const std::uint32_t first_token = tile * cut.tokens_per_task;
  const std::uint32_t group = args.num_heads / layer.num_kv_heads;
  const std::uint32_t kv_head = index % cut.tasks_per_tile / cut.shares_per_kv_head;
  const std::uint32_t head_in_group =
      index % cut.tasks_per_tile % cut.shares_per_kv_head * cut.heads_per_task;
  const std::size_t head = std::size_t{kv_head} * group + head_in_group;
  const std::size_t row = std::size_t{first_row} + first_token;
  const std::size_t out_row_stride = std::size_t{args.num_heads} * layer.head_dim;
  AttentionRule rule = args.rule;
  rule.scale *= layer.k_scale;
  if (rule.sinks != nullptr) rule.sinks += head;
  return {
      .q = args.q + row * args.q_row_stride + head * layer.head_dim,
      .q_row_stride = args.q_row_stride,
      .out = args.out + row * out_row_stride + head * layer.head_dim,
      .out_row_stride = out_row_stride,
      .block_table = args.block_tables.data() + s * args.block_table_stride,
      .first_position = args.context_lens[s] - query_len + first_token,
      .num_tokens = std::min(cut.tokens_per_task, query_len - first_token),
      .num_heads = std::min(cut.heads_per_task, group - head_in_group),
      .kv_head = kv_head,
      .rule = rule,
  };
}

#if defined(INFERNO_X86_KERNELS)
constexpr VectorKernels<AttentionKernel> kKernels{attention_kernel_portable, attention_kernel_avx2,
                                                  attention_kernel_avx512};
#else
constexpr VectorKernels<AttentionKernel> kKernels{attention_kernel_portable};
#endif

float capped(float score, float softcap) {
  return softcap > 0.0F ? softcap * std::tanh(score / softcap) : score;
}

// One query row of the task.
void attend(const KvLayer& layer, const AttentionTask& task, std::uint32_t token,
            std::uint32_t head) {
  const AttentionRule& rule = task.rule;
  const std::size_t column = std::size_t{head} * layer.head_dim;
  const float* q = task.q + token * task.q_row_stride + column;
  float* sums = task.out + token * task.out_row_stride + column;
  const auto slot_of = [&](std::uint32_t position) {
    return std::size_t{task.block_table[position / layer.block_size]} * layer.block_size +
           position % layer.block_size;
  };
  const std::uint32_t position = task.first_position + token;
  const std::uint32_t first = rule.first_seen(position);
  float maximum = rule.sinks ? rule.sinks[head] : -std::numeric_limits<float>::infinity();
  float total = rule.sinks ? 1.0F : 0.0F;
  std::fill_n(sums, layer.head_dim, 0.0F);
  for (std::uint32_t tile = first / kPositionTile * kPositionTile; tile <= position;
       tile += kPositionTile) {
    const std::uint32_t begin = std::max(tile, first);
    const std::uint32_t end = std::min(tile + kPositionTile, position + 1);
    float scores[kPositionTile];
    float new_maximum = maximum;
    for (std::uint32_t p = begin; p < end; ++p) {
      const std::size_t key = key_index(layer, slot_of(p), task.kv_head, 0);
      float score = 0.0F;
      for (std::size_t d = 0; d < layer.head_dim; ++d) {
        score += q[d] * rule.scale * load_element(layer.k, layer.dtype, key + d * layer.block_size);
      }
      scores[p - tile] = capped(score, rule.softcap);
      new_maximum = std::max(new_maximum, scores[p - tile]);
    }
    const float rescale = std::exp(maximum - new_maximum);  // 0 in the first tile without a sink
    maximum = new_maximum;
    total *= rescale;
    for (std::uint32_t d = 0; d < layer.head_dim; ++d) sums[d] *= rescale;
    for (std::uint32_t p = begin; p < end; ++p) {
      const float weight = std::exp(scores[p - tile] - maximum);
      const std::size_t value = value_index(layer, slot_of(p), task.kv_head, 0);
      total += weight;
      for (std::size_t d = 0; d < layer.head_dim; ++d) {
        sums[d] += weight * load_element(layer.v, layer.dtype, value + d);
      }
    }
  }
  for (std::uint32_t d = 0; d < layer.head_dim; ++d) sums[d] /= total / layer.v_scale;
}

}  // namespace

void attention_kernel_portable(const KvLayer& layer, const AttentionTask& task, float*) {
  for (std::uint32_t token = 0; token < task.num_tokens; ++token) {
    for (std::uint32_t head = 0; head < task.num_heads; ++head) attend(layer, task, token, head);
  }
}

std::size_t attention_workspace_bytes(const AttentionLimits& limits) noexcept {
  const std::size_t scratch = round_up(scratch_floats(limits.head_dim) * sizeof(float), kAlignment);
  return task_table_bytes(limits.max_sequences) + limits.num_threads * scratch;
}

void attention(const OpContext& context, const KvLayer& layer, const AttentionArgs& args) {
  check(layer, args);
  const std::size_t num_sequences = args.context_lens.size();
  const std::size_t table_bytes = task_table_bytes(num_sequences);
  const std::size_t scratch_bytes =
      round_up(scratch_floats(layer.head_dim) * sizeof(float), kAlignment);
  if (context.workspace.size() < table_bytes + context.threads.num_threads() * scratch_bytes) {
    throw std::invalid_argument("other: attention: the workspace is too small");
  }
  // first_task[s]: tasks of the sequences before s.
  auto* first_task = reinterpret_cast<std::uint32_t*>(context.workspace.data());
  const TaskCut cut(layer, args.num_heads);
  first_task[0] = 0;
  for (std::size_t s = 0; s < num_sequences; ++s) {
    const std::uint32_t query_len = args.cu_query_lens[s + 1] - args.cu_query_lens[s];
    first_task[s + 1] = first_task[s] + cut.num_tiles(query_len) * cut.tasks_per_tile;
  }
  const AttentionKernel kernel = kKernels.of(context.isa);
  const std::uint32_t* table_end = first_task + num_sequences + 1;
  context.threads.parallel_for(
      first_task[num_sequences], [&](std::uint32_t index, std::uint32_t thread) {
        const auto s = static_cast<std::size_t>(
            std::upper_bound(first_task, const_cast<std::uint32_t*>(table_end), index) -
            first_task - 1);
        std::byte* scratch = context.workspace.data() + table_bytes + thread * scratch_bytes;
        kernel(layer, make_task(layer, args, s, index - first_task[s]),
               reinterpret_cast<float*>(scratch));
      });
}

}  // namespace inferno::ops
