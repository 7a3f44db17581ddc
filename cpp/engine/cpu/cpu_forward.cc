#include "engine/cpu/cpu_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/error.h"
#include "ops/attention/attention.h"
#include "ops/embed/embed.h"
#include "ops/glu/glu.h"
#include "ops/kv_write/kv_write.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"

namespace inferno::engine {

CpuForward::CpuForward(const CpuDevice& device, const ForwardParts& parts)
    : device_(device),
      shape_(parts.shape),
      limits_(parts.limits),
      kv_(parts.kv),
      workspace_(device.pool, parts.shape, parts.limits, device.threads.num_threads()),
      warm_up_steps_{{1, std::min({parts.limits.block_size, parts.limits.max_step_tokens,
                                   parts.limits.max_seq_len, 8U})}},
      inv_freq_(inverse_frequencies(parts.shape)),
      last_sampled_(parts.limits.max_batch_size),
      row_of_logits_(parts.limits.max_batch_size),
      sample_status_(parts.limits.max_batch_size) {
  sampled_.reserve(parts.limits.max_batch_size);
  // The first touch takes the pages. KV blocks get theirs when they are first used: a node that
  // never fills its cache never pays for it.
  const std::span<std::byte> all = workspace_.all();
  std::memset(all.data(), 0, all.size());
}

void CpuForward::begin(const StepBatch& batch) {
  batch_ = batch;
  // token_ids [T], with the token that the host has not seen yet in its place.
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), workspace_.token_ids);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.feed_sampled[seq]) continue;
    workspace_.token_ids[batch.cu_query_lens[seq]] = last_sampled_[batch.seats[seq]];
  }
}

void CpuForward::embed(const Weights& weights) {
  const ops::OpContext context = op_context();
  ops::embed(context,
             {weights.embedding, {workspace_.token_ids, batch_.num_tokens()}, 1.0F, workspace_.x});
  ops::rope_angles(context, {inv_freq_, 1.0F, batch_.positions, workspace_.cos_sin});
}

void CpuForward::norm(const float* weight) {
  const CpuWorkspace& w = workspace_;
  ops::rms_norm(op_context(),
                {w.x, weight, shape_.rms_norm_eps, batch_.num_tokens(), shape_.hidden_size, w.h});
}

void CpuForward::project_qkv(const LayerWeights& layer) {
  norm(layer.input_norm);
  ops::linear(op_context(), {workspace_.h, batch_.num_tokens(), layer.qkv.weight, layer.qkv.bias,
                             workspace_.qkv, false});
}

void CpuForward::attend(std::uint32_t layer) {
  const ops::OpContext context = op_context();
  const CpuWorkspace& w = workspace_;
  const ops::KvLayer& kv = kv_.layer(layer);
  const std::size_t row = shape_.qkv_size();
  // qkv [T, num_heads + 2 num_kv_heads, head_dim]: a token's q heads, k heads, v heads
  ops::rope(context, {w.qkv, row, w.cos_sin, batch_.num_tokens(),
                      shape_.num_heads + shape_.num_kv_heads, shape_.head_dim, shape_.head_dim});
  // A token's own K and V are read back from the cache too: so a chunk's borders leave no trace in
  // its bits.
  ops::kv_write(context, kv,
                {w.qkv + shape_.q_size(), w.qkv + shape_.q_size() + shape_.kv_size(), row,
                 batch_.slot_mapping});
  ops::attention({device_.threads, device_.attention_isa, workspace_.ops}, kv,
                 {w.qkv,
                  row,
                  shape_.num_heads,
                  {.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim))},
                  batch_.cu_query_lens,
                  batch_.context_lens,
                  batch_.block_tables,
                  batch_.block_table_stride,
                  w.attended});
}

void CpuForward::add_attended(const LayerWeights& layer) {
  ops::linear(op_context(), {workspace_.attended, batch_.num_tokens(), layer.o.weight, layer.o.bias,
                             workspace_.x, true});
}

void CpuForward::gate(const LayerWeights& layer) {
  const ops::OpContext context = op_context();
  const CpuWorkspace& w = workspace_;
  const std::uint32_t num_tokens = batch_.num_tokens();
  norm(layer.post_attention_norm);
  // gate_up [T, 2, intermediate_size]
  ops::linear(context,
              {w.h, num_tokens, layer.gate_up.weight, layer.gate_up.bias, w.gate_up, false});
  ops::glu(context, {w.gate_up, num_tokens, shape_.intermediate_size, {}, w.gated});
}

void CpuForward::add_gated(const LayerWeights& layer, const LayerWeights*) {
  ops::linear(op_context(), {workspace_.gated, batch_.num_tokens(), layer.down.weight,
                             layer.down.bias, workspace_.x, true});
}

void CpuForward::project_logits(const Weights& weights) {
  const ops::OpContext context = op_context();
  const CpuWorkspace& w = workspace_;
  const std::size_t hidden_size = shape_.hidden_size;
  num_rows_ = 0;
  for (std::uint32_t seq = 0; seq < batch_.num_seqs(); ++seq) {
    if (!batch_.sample[seq]) continue;
    const std::size_t token = batch_.cu_query_lens[seq + 1] - 1;
    std::copy_n(w.x + token * hidden_size, hidden_size, w.last + num_rows_ * hidden_size);
    row_of_logits_[num_rows_++] = seq;
  }
  // last [R, hidden_size]
  ops::rms_norm(context, {w.last, weights.final_norm, shape_.rms_norm_eps, num_rows_,
                          shape_.hidden_size, w.last});
  ops::linear(context,
              {w.last, num_rows_, weights.lm_head.weight, weights.lm_head.bias, w.logits, false});
}

void CpuForward::sample() {
  const std::size_t vocab_size = shape_.vocab_size;
  sampled_.assign(batch_.num_seqs(), 0);
  num_logits_ = batch_.want_logits ? num_rows_ * vocab_size : 0;
  device_.threads.parallel_for(num_rows_, [&](std::uint32_t row, std::uint32_t thread) {
    const std::uint32_t seq = row_of_logits_[row];
    const ops::SampleScratch scratch{{workspace_.weights + thread * vocab_size, vocab_size},
                                     {workspace_.ranked + thread * vocab_size, vocab_size}};
    const ops::Sampled sampled =
        ops::sample_row({workspace_.logits + row * vocab_size, vocab_size}, batch_.sampling[seq],
                        limits_.end_token_ids, scratch);
    sampled_[seq] = sampled.token_id;
    sample_status_[row] = sampled.status;
  });
  for (std::uint32_t row = 0; row < num_rows_; ++row) {
    if (sample_status_[row] != ops::SampleStatus::kOk) {
      throw_not_sampled(row_of_logits_[row], sample_status_[row]);
    }
  }
  for (std::uint32_t row = 0; row < num_rows_; ++row) {
    const std::uint32_t seq = row_of_logits_[row];
    last_sampled_[batch_.seats[seq]] = sampled_[seq];
  }
}

StepOutput CpuForward::take() { return {sampled_, {workspace_.logits, num_logits_}}; }

void throw_not_sampled(std::uint32_t seq, ops::SampleStatus status) {
  const bool rubbish = status == ops::SampleStatus::kNotANumber;
  throw Error(ErrorCode::kOther,
              "sequence " + std::to_string(seq) +
                  (rubbish ? ": logits that are no numbers" : ": no token is left to be sampled"));
}

}  // namespace inferno::engine
