#include "engine/cpu/cpu_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/attention/attention.h"
#include "ops/embed/embed.h"
#include "ops/kv_write/kv_write.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/silu_mul/silu_mul.h"

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
      sampler_(device.threads, workspace_.sampler, parts.limits.max_batch_size),
      positions_(parts.limits.max_step_tokens),
      slot_mapping_(parts.limits.max_step_tokens),
      cu_query_lens_(std::size_t{parts.limits.max_batch_size} + 1),
      answer_(parts.limits.max_batch_size, parts.limits.max_step_tokens) {
  row_seqs_.reserve(parts.limits.max_batch_size);
  scored_.reserve(parts.limits.max_step_tokens);
  // The first touch takes the pages. KV blocks get theirs when they are first used: a node that
  // never fills its cache never pays for it.
  const std::span<std::byte> all = workspace_.all();
  std::memset(all.data(), 0, all.size());
}

void CpuForward::bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) {
  sampler_.bind(spec, history);
}

void CpuForward::begin(const StepBatch& batch) {
  batch_ = batch;
  derive_arrays(batch, limits_.block_size,
                {positions_.data(), slot_mapping_.data(), cu_query_lens_.data()});
  answer_.begin(batch.num_seqs());
  // token_ids [T], with the token that the host has not seen yet in its place.
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), workspace_.token_ids);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.feed_sampled[seq]) continue;
    workspace_.token_ids[cu_query_lens_[seq]] = sampler_.last_sampled(batch.seats[seq]);
  }
}

void CpuForward::embed(const Weights& weights) {
  const ops::OpContext context = op_context();
  ops::embed(context, weights.embedding, {workspace_.token_ids, batch_.num_tokens()}, workspace_.x);
  ops::rope_angles(context, inv_freq_, {positions_.data(), batch_.num_tokens()},
                   workspace_.cos_sin);
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
                      shape_.num_heads + shape_.num_kv_heads, shape_.head_dim});
  // A token's own K and V are read back from the cache too: so a chunk's borders leave no trace in
  // its bits.
  ops::kv_write(context, kv,
                {w.qkv + shape_.q_size(),
                 w.qkv + shape_.q_size() + shape_.kv_size(),
                 row,
                 {slot_mapping_.data(), batch_.num_tokens()}});
  ops::attention(
      {device_.threads, device_.attention_isa, workspace_.ops}, kv,
      {w.qkv, row, shape_.num_heads, 1.0F / std::sqrt(static_cast<float>(shape_.head_dim)),
       std::span(cu_query_lens_).first(batch_.num_seqs() + 1), batch_.context_lens,
       batch_.block_tables, batch_.block_table_stride, w.attended});
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
  ops::silu_mul(context, {w.gate_up, num_tokens, shape_.intermediate_size, w.gated});
}

void CpuForward::add_gated(const LayerWeights& layer, const LayerWeights*) {
  ops::linear(op_context(), {workspace_.gated, batch_.num_tokens(), layer.down.weight,
                             layer.down.bias, workspace_.x, true});
}

void CpuForward::project_logits(const Weights& weights) {
  weights_ = &weights;
  const std::size_t hidden_size = shape_.hidden_size;
  row_seqs_.clear();
  for (std::uint32_t seq = 0; seq < batch_.num_seqs(); ++seq) {
    if (!batch_.sample[seq]) continue;
    const std::size_t token = cu_query_lens_[seq + 1] - 1;
    std::copy_n(workspace_.x + token * hidden_size, hidden_size,
                workspace_.last + row_seqs_.size() * hidden_size);
    row_seqs_.push_back(seq);
  }
  project_last(static_cast<std::uint32_t>(row_seqs_.size()));
}

void CpuForward::project_last(std::uint32_t num_rows) {
  const ops::OpContext context = op_context();
  const CpuWorkspace& w = workspace_;
  ops::rms_norm(context, {w.last, weights_->final_norm, shape_.rms_norm_eps, num_rows,
                          shape_.hidden_size, w.last});
  ops::linear(context, {w.last, num_rows, weights_->lm_head.weight, weights_->lm_head.bias,
                        w.logits, false});
}

void CpuForward::sample() {
  sampler_.sample(batch_, row_seqs_, workspace_.logits, answer_);
  logits_ = {workspace_.logits, batch_.want_logits ? row_seqs_.size() * shape_.vocab_size : 0};
}

void CpuForward::score() {
  scored_.clear();
  for_each_scored(batch_, [&](const ScoredToken& token) { scored_.push_back(token); });
  if (scored_.empty()) return;
  // The logits of the rows that sample make room.
  wanted_logits_.assign(logits_.begin(), logits_.end());
  logits_ = wanted_logits_;
  const std::size_t hidden_size = shape_.hidden_size;
  const std::size_t max_rows = std::min(limits_.max_batch_size, limits_.max_step_tokens);
  for (std::size_t first = 0; first < scored_.size(); first += max_rows) {
    const auto part = std::span(scored_).subspan(first, std::min(max_rows, scored_.size() - first));
    for (std::size_t row = 0; row < part.size(); ++row) {
      std::copy_n(workspace_.x + part[row].token * hidden_size, hidden_size,
                  workspace_.last + row * hidden_size);
    }
    project_last(static_cast<std::uint32_t>(part.size()));
    sampler_.score(batch_, part, workspace_.logits, answer_);
  }
}

StepOutput CpuForward::take() {
  StepOutput output = answer_.finish();
  output.logits = logits_;
  return output;
}

}  // namespace inferno::engine
