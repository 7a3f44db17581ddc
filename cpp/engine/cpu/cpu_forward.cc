#include "engine/cpu/cpu_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/add_norm/add_norm.h"
#include "ops/attention/attention.h"
#include "ops/embed/embed.h"
#include "ops/experts/experts.h"
#include "ops/experts/route.h"
#include "ops/gather_columns/gather_columns.h"
#include "ops/glu/glu.h"
#include "ops/head_norm/head_norm.h"
#include "ops/kv_write/kv_write.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/sigmoid_gate/sigmoid_gate.h"
#include "ops/softcap/softcap.h"

namespace inferno::engine {

CpuForward::CpuForward(const CpuDevice& device, const ForwardParts& parts)
    : device_(device),
      decoder_(parts.decoder),
      spec_(parts.decoder.spec),
      limits_(parts.limits),
      workspace_(device.pool, spec_, parts.limits, device.threads.num_threads()),
      warm_up_steps_{{1, std::min({parts.limits.block_size, parts.limits.max_step_tokens,
                                   parts.limits.max_seq_len, 8U})}},
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

void CpuForward::embed() {
  const ops::OpContext context = op_context();
  const CpuWorkspace& w = workspace_;
  const std::span<const std::uint32_t> positions(positions_.data(), batch_.num_tokens());
  ops::embed(
      context,
      {decoder_.weights.embedding, {w.token_ids, batch_.num_tokens()}, spec_.embedding_scale, w.x});
  for (std::size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    ops::rope_angles(context, {rope.inv_freq, rope.scale, positions, w.cos_sin[i]});
    if (rope.query_beta == 0) continue;
    for (std::size_t t = 0; t < positions.size(); ++t) {
      const std::uint32_t turns = positions[t] / rope.query_original_positions;
      w.query_scale[i][t] = 1 + rope.query_beta * std::log1p(static_cast<float>(turns));
    }
  }
  norm_x(decoder_.first);
}

void CpuForward::product(const Linear& linear, const float* in, float* out, bool accumulate) const {
  if (linear.order != nullptr) {
    const std::uint32_t num_columns = linear.weight.shape.num_columns;
    ops::gather_columns(op_context(),
                        {in, batch_.num_tokens(), num_columns, linear.order, workspace_.gathered});
    in = workspace_.gathered;
  }
  ops::linear(op_context(), {in, batch_.num_tokens(), linear.weight, linear.bias, out, accumulate});
}

void CpuForward::norm_x(const Norm& norm) const {
  const CpuWorkspace& w = workspace_;
  const std::size_t size = std::size_t{batch_.num_tokens()} * spec_.hidden_size;
  if (!norm.is_there()) {
    std::copy_n(w.x, size, w.h);
    return;
  }
  ops::rms_norm(op_context(),
                {w.x, norm.weight, norm.eps, batch_.num_tokens(), spec_.hidden_size, w.h});
}

void CpuForward::add_product(const Linear& linear, const float* in, const Join& join) const {
  if (join.is_plain() && join.scale == 1) {
    product(linear, in, workspace_.x, true);
    if (!join.is_last) norm_x(join.next);
    return;
  }
  product(linear, in, workspace_.branch, false);
  add_branch(join);
}

void CpuForward::add_branch(const Join& join) const {
  const CpuWorkspace& w = workspace_;
  const Norm& after = join.after;
  ops::add_norm(op_context(), {w.branch, after.is_there(), after.weight, after.eps, join.scale,
                               batch_.num_tokens(), spec_.hidden_size, w.x});
  if (!join.is_last) norm_x(join.next);
}

void CpuForward::project_qkv(const Layer& layer) {
  product(layer.weights->qkv, workspace_.h, workspace_.qkv, false);
  if (!layer.attention->output_gate) return;
  product(layer.weights->output_gate, workspace_.h, workspace_.output_gate, false);
}

// qkv [T, num_heads + 2 num_kv_heads, head_dim]: a token's q heads, k heads, v heads
void CpuForward::norm_heads(const Layer& layer) const {
  const AttentionSpec& a = *layer.attention;
  if (a.qk_norm == QkNorm::None) return;
  const bool per_row = a.qk_norm == QkNorm::PerRow;
  const auto norm = [&](std::uint32_t offset, std::uint32_t num_heads, const float* weight) {
    ops::head_norm(op_context(), {workspace_.qkv + offset, a.qkv_size(), weight, a.qk_norm_eps,
                                  batch_.num_tokens(), per_row ? 1 : num_heads,
                                  per_row ? num_heads * a.head_dim : a.head_dim});
  };
  norm(0, a.num_heads, layer.weights->q_norm);
  norm(a.q_size(), a.num_kv_heads, layer.weights->k_norm);
}

void CpuForward::turn_heads(const AttentionSpec& a) const {
  if (a.rope == kNoRope) return;
  const CpuWorkspace& w = workspace_;
  const RopeSpec& spec = spec_.ropes[a.rope];
  const auto turn = [&](std::uint32_t offset, std::uint32_t num_heads, const float* head_scale) {
    ops::rope(op_context(),
              {w.qkv + offset, a.qkv_size(), w.cos_sin[a.rope], batch_.num_tokens(), num_heads,
               a.head_dim, 2 * static_cast<std::uint32_t>(spec.inv_freq.size()), spec.interleaved,
               head_scale});
  };
  if (spec.query_beta == 0) {
    turn(0, a.num_heads + a.num_kv_heads, nullptr);
    return;
  }
  turn(0, a.num_heads, w.query_scale[a.rope]);
  turn(a.q_size(), a.num_kv_heads, nullptr);
}

void CpuForward::attend(const Layer& layer) {
  const AttentionSpec& a = *layer.attention;
  const CpuWorkspace& w = workspace_;
  const std::size_t row = a.qkv_size();
  norm_heads(layer);
  turn_heads(a);
  // A token's own K and V are read back from the cache too: so a chunk's borders leave no trace in
  // its bits.
  ops::kv_write(op_context(), *layer.kv,
                {w.qkv + a.q_size(),
                 w.qkv + a.q_size() + a.kv_size(),
                 row,
                 {slot_mapping_.data(), batch_.num_tokens()}});
  ops::attention({device_.threads, device_.attention_isa, workspace_.ops}, *layer.kv,
                 {w.qkv,
                  row,
                  a.num_heads,
                  {a.scale, a.window, a.softcap, layer.weights->sinks},
                  std::span(cu_query_lens_).first(batch_.num_seqs() + 1),
                  batch_.context_lens,
                  batch_.block_tables,
                  batch_.block_table_stride,
                  w.attended});
  if (!a.output_gate) return;
  ops::sigmoid_gate(op_context(), {w.output_gate, batch_.num_tokens(), a.q_size(), 1, w.attended});
}

void CpuForward::add_attended(const Layer& layer) {
  add_product(layer.weights->o, workspace_.attended, layer.after_attention);
}

void CpuForward::gate(const Layer& layer) {
  const CpuWorkspace& w = workspace_;
  const std::uint32_t size = layer.mlp->dense_size();
  product(layer.weights->gate_up, w.h, w.gate_up, false);
  ops::glu(op_context(), {w.gate_up, batch_.num_tokens(), size, layer.mlp->activation, w.gated});
  if (!layer.mlp->shared.has_gate) return;
  // Down is linear and has no bias, so what it reads may be gated: its output goes into a sum.
  product(layer.weights->shared_gate, w.h, w.shared_gate, false);
  ops::sigmoid_gate(op_context(), {w.shared_gate, batch_.num_tokens(), 1, size, w.gated});
}

void CpuForward::add_gated(const Layer& layer) {
  if (layer.mlp->kind == MlpKind::Experts) {
    product(layer.weights->down, workspace_.gated, workspace_.branch, false);
    return;
  }
  add_product(layer.weights->down, workspace_.gated, layer.after_mlp);
}

void CpuForward::add_experts(const Layer& layer) {
  const MlpSpec& mlp = *layer.mlp;
  const CpuWorkspace& w = workspace_;
  const std::uint32_t num_tokens = batch_.num_tokens();
  product(layer.weights->router, w.h, w.router_logits, false);
  const ops::RouteRule rule{mlp.router_kind, mlp.num_experts, mlp.experts_per_token,
                            mlp.renormalise, mlp.routed_scale};
  ops::route(op_context(), {w.router_logits, num_tokens, rule, w.expert_ids, w.expert_weights,
                            layer.weights->score_correction});
  ops::experts(op_context(),
               {w.h,
                num_tokens,
                experts_shape(spec_, mlp),
                w.expert_ids,
                w.expert_weights,
                {layer.weights->expert_gate_up, layer.weights->expert_down, mlp.activation},
                1,
                w.branch,
                mlp.dense_size() > 0});
  add_branch(layer.after_mlp);
}

void CpuForward::project_logits() {
  const std::size_t hidden_size = spec_.hidden_size;
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
  const Norm& norm = decoder_.last;
  const Linear& head = decoder_.weights.head;
  ops::rms_norm(context, {w.last, norm.weight, norm.eps, num_rows, spec_.hidden_size, w.last});
  ops::linear(context, {w.last, num_rows, head.weight, head.bias, w.logits, false});
  if (spec_.logit_scale == 1 && spec_.logit_softcap == 0) return;
  ops::softcap(context, {w.logits, std::size_t{num_rows} * spec_.vocab_size, spec_.logit_scale,
                         spec_.logit_softcap});
}

void CpuForward::sample() {
  sampler_.sample(batch_, row_seqs_, workspace_.logits, answer_);
  logits_ = {workspace_.logits, batch_.want_logits ? row_seqs_.size() * spec_.vocab_size : 0};
}

void CpuForward::score() {
  scored_.clear();
  for_each_scored(batch_, [&](const ScoredToken& token) { scored_.push_back(token); });
  if (scored_.empty()) return;
  // The logits of the rows that sample make room.
  wanted_logits_.assign(logits_.begin(), logits_.end());
  logits_ = wanted_logits_;
  const std::size_t hidden_size = spec_.hidden_size;
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
