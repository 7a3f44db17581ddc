// A share of one attention call, as the kernels of every instruction set get it. Plain data: the
// files that are compiled for one instruction set include this and call nothing that another file
// could share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/attention/attention.h"
#include "ops/kv_write/kv_write.h"

namespace inferno::ops {

// Most rows (query tokens times query heads) of a task, and most query heads of one.
inline constexpr std::uint32_t kMaxTaskRows = 64;
inline constexpr std::uint32_t kMaxTaskHeads = 8;

// Neighbouring query tokens of one sequence, and neighbouring query heads that read the same KV
// head. Row r of a task is token r / num_heads, head r % num_heads.
struct AttentionTask {
  const float* q;  // [num_tokens, num_heads, head_dim] of this task; tokens are q_row_stride apart
  std::size_t q_row_stride;
  float* out;  // the same shape; tokens are out_row_stride apart
  std::size_t out_row_stride;
  const std::uint32_t* block_table;
  std::uint32_t first_position;  // of the first token
  std::uint32_t num_tokens;
  std::uint32_t num_heads;
  std::uint32_t kv_head;
  AttentionRule rule;  // its scale times the keys'; sinks, if any, are [num_heads] of this task
};

// scratch: the calling thread's own, as attention_workspace_bytes counts it, aligned to
// kAlignment.
using AttentionKernel = void (*)(const KvLayer& layer, const AttentionTask& task, float* scratch);

void attention_kernel_portable(const KvLayer& layer, const AttentionTask& task, float* scratch);
void attention_kernel_avx2(const KvLayer& layer, const AttentionTask& task, float* scratch);
void attention_kernel_avx512(const KvLayer& layer, const AttentionTask& task, float* scratch);

}  // namespace inferno::ops
