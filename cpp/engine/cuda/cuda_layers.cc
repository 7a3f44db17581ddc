// The parts of a decoder on a GPU, in the order of the forward pass: which launches a layer's spec
// becomes.
#include "engine/cuda/cuda_forward.h"
#include "ops/add_norm/add_norm_cuda.h"
#include "ops/embed/embed_cuda.h"
#include "ops/experts/cuda/route_cuda.h"
#include "ops/gather_columns/gather_columns_cuda.h"
#include "ops/head_norm/head_norm_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"
#include "ops/rope/rope_kv_cuda.h"
#include "ops/sigmoid_gate/sigmoid_gate_cuda.h"
#include "ops/softcap/softcap_cuda.h"

namespace inferno::engine {
namespace {

static_assert(kMaxRopes <= ops::cuda::kMaxRopes);

ops::cuda::DeviceMatrix matrix_of(const ops::PackedWeights& weights) {
  return {weights.data, weights.shape.num_rows, weights.shape.num_columns, weights.shape.format};
}

ops::cuda::KvLayerCuda kv_layer_of(const ops::KvLayer& kv, ops::Dtype activation) {
  return {.k = kv.k,
          .v = kv.v,
          .dtype = activation,
          .num_blocks = kv.num_blocks,
          .block_size = kv.block_size,
          .num_kv_heads = kv.num_kv_heads,
          .head_dim = kv.head_dim,
          .fp8 = kv.dtype == ops::Dtype::Fp8,
          .k_scale = kv.k_scale,
          .v_scale = kv.v_scale};
}

ops::cuda::RowNorm row_norm(const Norm& norm) { return {norm.is_there(), norm.weight, norm.eps}; }

}  // namespace

ops::cuda::LinearInput CudaForward::plain(const void* h, std::uint32_t num_rows) const {
  return {.h = h, .num_tokens = num_rows, .dtype = spec_.activation};
}

ops::cuda::LinearInput CudaForward::normed(const InputFrom& from, const Norm& norm) const {
  ops::cuda::LinearInput in = plain(workspace_.h, slot_->counts().num_tokens);
  const bool deferred =
      (from.product != nullptr &&
       linear_->defers(in.num_tokens, in.dtype, matrix_of(from.product->weight))) ||
      (from.experts && experts_->defers(in.num_tokens, in.dtype));
  if (deferred) in.square_sums = workspace_.square_sums;
  in.eps = norm.eps;
  return in;
}

ops::cuda::NextNorm CudaForward::next_norm(const Norm& norm) const {
  return {norm.weight, norm.eps, workspace_.h, workspace_.square_sums};
}

ops::cuda::LinearInput CudaForward::in_order(const Linear& linear,
                                             const ops::cuda::LinearInput& in) const {
  if (linear.order == nullptr) return in;
  ops::cuda::gather_columns_cuda(device_.op, {.x = in.h,
                                              .num_tokens = in.num_tokens,
                                              .num_columns = linear.weight.shape.num_columns,
                                              .order = linear.order,
                                              .out = workspace_.gathered});
  ops::cuda::LinearInput ordered = in;
  ordered.h = workspace_.gathered;
  return ordered;
}

void CudaForward::embed() {
  ops::cuda::EmbedCudaArgs args{.table = matrix_of(decoder_.weights.embedding),
                                .token_ids = arrays_.token_ids,
                                .feed_seats = arrays_.feed_seats,
                                .sampled_ids = workspace_.sampler.sampled_ids,
                                .num_tokens = slot_->counts().num_tokens,
                                .scale = spec_.embedding_scale,
                                .positions = arrays_.positions,
                                .num_ropes = static_cast<std::uint32_t>(spec_.ropes.size()),
                                .norm = row_norm(decoder_.first),
                                .x = workspace_.x,
                                .h = workspace_.h};
  for (std::size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    args.ropes[i] = {.inv_freq = workspace_.inv_freq[i],
                     .half = static_cast<std::uint32_t>(rope.inv_freq.size()),
                     .scale = rope.scale,
                     .cos_sin = workspace_.cos_sin[i]};
  }
  ops::cuda::embed_cuda(device_.op, args);
}

void CudaForward::project_qkv(const Layer& layer) {
  const Linear& qkv = layer.weights->qkv;
  const ops::cuda::LinearInput in = normed(layer.attention_input, layer.pre_attention);
  linear_->store(device_.op, in_order(qkv, in), matrix_of(qkv.weight), qkv.bias, workspace_.qkv);
  if (!layer.attention->output_gate) return;
  linear_->store(device_.op, in, matrix_of(layer.weights->output_gate.weight), nullptr,
                 workspace_.output_gate);
}

// qkv [T, num_heads + 2 num_kv_heads, head_dim]. Heads that turn are normalised where they turn.
void CudaForward::norm_heads(const Layer& layer) const {
  const AttentionSpec& a = *layer.attention;
  const bool per_row = a.qk_norm == QkNorm::PerRow;
  if (a.qk_norm == QkNorm::None || (!per_row && a.rope != kNoRope)) return;
  const auto norm = [&](std::uint32_t offset, std::uint32_t num_heads, const float* weight) {
    ops::cuda::head_norm_cuda(device_.op,
                              {.x = static_cast<std::byte*>(workspace_.qkv) +
                                    std::size_t{offset} * ops::dtype_bytes(spec_.activation),
                               .row_stride = a.qkv_size(),
                               .weight = weight,
                               .eps = a.qk_norm_eps,
                               .num_tokens = slot_->counts().num_tokens,
                               .num_heads = per_row ? 1 : num_heads,
                               .width = per_row ? num_heads * a.head_dim : a.head_dim,
                               .dtype = spec_.activation});
  };
  norm(0, a.num_heads, layer.weights->q_norm);
  norm(a.q_size(), a.num_kv_heads, layer.weights->k_norm);
}

void CudaForward::write_kv(const Layer& layer) const {
  const AttentionSpec& a = *layer.attention;
  ops::cuda::RopeKvArgs args{.qkv = workspace_.qkv,
                             .slot_mapping = arrays_.slot_mapping,
                             .num_tokens = slot_->counts().num_tokens,
                             .num_heads = a.num_heads,
                             .positions = arrays_.positions};
  if (a.rope != kNoRope) {
    const RopeSpec& rope = spec_.ropes[a.rope];
    args.cos_sin = workspace_.cos_sin[a.rope];
    args.rotary_dim = static_cast<std::uint32_t>(2 * rope.inv_freq.size());
    args.interleaved = rope.interleaved;
    args.query_beta = rope.query_beta;
    args.query_original_positions = static_cast<float>(rope.query_original_positions);
    if (a.qk_norm == QkNorm::PerHead || a.qk_norm == QkNorm::PerHeadUnweighted) {
      args.q_norm = {true, layer.weights->q_norm, a.qk_norm_eps};
      args.k_norm = {true, layer.weights->k_norm, a.qk_norm_eps};
    }
  }
  ops::cuda::rope_kv_cuda(device_.op, kv_layer_of(*layer.kv, spec_.activation), args);
}

// Whether attention turns q and k itself, and writes the cache: in steps of few decodes, where rope
// is the plain one, by halves, of all of a head, and nothing else happens to a head. Behind a
// product that lets nobody start early a kernel for it costs nothing: attention begins meanwhile.
bool CudaForward::attention_turns(const Layer& layer) const {
  const AttentionSpec& a = *layer.attention;
  const StepCounts& counts = slot_->counts();
  const bool few_decodes =
      counts.num_decodes == counts.num_tokens && counts.num_tokens <= ops::cuda::kMaxFewRows;
  if (a.rope == kNoRope || !few_decodes) return false;
  const RopeSpec& rope = spec_.ropes[a.rope];
  const bool whole_head = 2 * rope.inv_freq.size() == a.head_dim && !rope.interleaved;
  const bool heads_stay = a.qk_norm == QkNorm::None || a.qk_norm == QkNorm::PerRow;
  return whole_head && heads_stay && rope.query_beta == 0 &&
         linear_->lets_next_start(plain(workspace_.h, counts.num_tokens),
                                  matrix_of(layer.weights->qkv.weight));
}

void CudaForward::attend(const Layer& layer) {
  const AttentionSpec& a = *layer.attention;
  const StepCounts& counts = slot_->counts();
  const bool turns = attention_turns(layer);
  norm_heads(layer);
  if (!turns) write_kv(layer);
  ops::cuda::attention_cuda(device_.op, kv_layer_of(*layer.kv, spec_.activation),
                            {.qkv = workspace_.qkv,
                             .cos_sin = turns ? workspace_.cos_sin[a.rope] : nullptr,
                             .num_heads = a.num_heads,
                             .rule = {a.scale, a.window, a.softcap, layer.weights->sinks},
                             .cu_query_lens = arrays_.cu_query_lens,
                             .context_lens = arrays_.context_lens,
                             .block_tables = workspace_.block_tables,
                             .block_table_stride = block_table_stride_,
                             .decode_seqs = arrays_.decode_seqs,
                             .num_decodes = counts.num_decodes,
                             .tiles = arrays_.tiles,
                             .num_tiles = counts.num_tiles,
                             .out = workspace_.attended,
                             .reference = device_.reference_attention,
                             .workspace = workspace_.attention});
  if (!a.output_gate) return;
  ops::cuda::sigmoid_gate_cuda(device_.op, {.gates = workspace_.output_gate,
                                            .num_tokens = counts.num_tokens,
                                            .num_gates = a.q_size(),
                                            .dtype = spec_.activation,
                                            .x = workspace_.attended});
}

void CudaForward::add_product(const Linear& linear, const void* in, const Join& join) {
  const ops::cuda::LinearInput input = in_order(linear, plain(in, slot_->counts().num_tokens));
  const ops::cuda::DeviceMatrix weight = matrix_of(linear.weight);
  if (join.is_plain()) {
    linear_->add(device_.op, input, weight, linear.bias,
                 {workspace_.x, join.scale, next_norm(join.next)});
    return;
  }
  linear_->store_f32(device_.op, input, weight, linear.bias, workspace_.branch);
  add_branch(join);
}

void CudaForward::add_branch(const Join& join) const {
  ops::cuda::add_norm_cuda(device_.op, {.x = workspace_.x,
                                        .y = workspace_.branch,
                                        .scale = join.scale,
                                        .post = row_norm(join.after),
                                        .next = row_norm(join.next),
                                        .h = join.is_last ? nullptr : workspace_.h,
                                        .num_tokens = slot_->counts().num_tokens,
                                        .hidden_size = spec_.hidden_size,
                                        .dtype = spec_.activation});
}

void CudaForward::add_attended(const Layer& layer) {
  add_product(layer.weights->o, workspace_.attended, layer.after_attention);
}

void CudaForward::gate(const Layer& layer) {
  const Linear& gate_up = layer.weights->gate_up;
  const ops::cuda::LinearInput in = normed(layer.mlp_input, layer.after_attention.next);
  linear_->gate(device_.op, in_order(gate_up, in), matrix_of(gate_up.weight), gate_up.bias,
                {layer.mlp->activation, workspace_.gate_up, workspace_.gated});
  if (!layer.mlp->shared.has_gate) return;
  // Down is linear and has no bias, so what it reads may be gated: its output goes into a sum.
  linear_->store(device_.op, in, matrix_of(layer.weights->shared_gate.weight), nullptr,
                 workspace_.shared_gate);
  ops::cuda::sigmoid_gate_cuda(device_.op, {.gates = workspace_.shared_gate,
                                            .num_tokens = in.num_tokens,
                                            .num_gates = 1,
                                            .width = layer.mlp->dense_size(),
                                            .dtype = spec_.activation,
                                            .x = workspace_.gated});
}

void CudaForward::add_gated(const Layer& layer) {
  const Linear& down = layer.weights->down;
  const Join& join = layer.after_mlp;
  if (layer.mlp->kind == MlpKind::Dense) return add_product(down, workspace_.gated, join);
  // The experts read h, too, and what they add goes where this goes.
  const ops::cuda::LinearInput in = plain(workspace_.gated, slot_->counts().num_tokens);
  if (join.is_plain()) {
    linear_->add(device_.op, in, matrix_of(down.weight), down.bias, {workspace_.x, join.scale, {}});
  } else {
    linear_->store_f32(device_.op, in, matrix_of(down.weight), down.bias, workspace_.branch);
  }
}

void CudaForward::add_experts(const Layer& layer) {
  const MlpSpec& mlp = *layer.mlp;
  const LayerWeights& weights = *layer.weights;
  const ops::cuda::LinearInput in = normed(layer.mlp_input, layer.after_attention.next);
  linear_->store_f32(device_.op, in, matrix_of(weights.router.weight), weights.router.bias,
                     workspace_.router_logits);
  ops::cuda::route_cuda(device_.op,
                        {.logits = workspace_.router_logits,
                         .num_tokens = in.num_tokens,
                         .rule = {mlp.router_kind, mlp.num_experts, mlp.experts_per_token,
                                  mlp.renormalise, mlp.routed_scale},
                         .slots = arrays_.slot_mapping,
                         .expert_ids = workspace_.expert_ids,
                         .weights = workspace_.expert_weights,
                         .score_correction = weights.score_correction});
  const ops::cuda::ExpertsInput chosen{.h = in.h,
                                       .num_tokens = in.num_tokens,
                                       .square_sums = in.square_sums,
                                       .eps = in.eps,
                                       .expert_ids = workspace_.expert_ids,
                                       .weights = workspace_.expert_weights};
  const ops::ExpertsWeights experts{weights.expert_gate_up, weights.expert_down, mlp.activation};
  const Join& join = layer.after_mlp;
  if (join.is_plain()) {
    experts_->add(device_.op, chosen, experts,
                  {.x = workspace_.x, .scale = join.scale, .next = next_norm(join.next)});
    return;
  }
  if (mlp.dense_size() > 0) {
    experts_->add(device_.op, chosen, experts, {.x = workspace_.branch});
  } else {
    experts_->store(device_.op, chosen, experts, workspace_.branch);
  }
  add_branch(join);
}

void CudaForward::project_logits() { project_rows(arrays_.last_tokens, slot_->counts().num_rows); }

void CudaForward::project_rows(const std::uint32_t* rows, std::uint32_t num_rows) {
  const Linear& head = decoder_.weights.head;
  ops::cuda::rms_norm_cuda(device_.op, {.x = workspace_.x,
                                        .rows = rows,
                                        .weight = decoder_.last.weight,
                                        .eps = decoder_.last.eps,
                                        .num_tokens = num_rows,
                                        .hidden_size = spec_.hidden_size,
                                        .dtype = spec_.activation,
                                        .out = workspace_.last});
  linear_->store_f32(device_.op, plain(workspace_.last, num_rows), matrix_of(head.weight),
                     head.bias, workspace_.logits);
  if (spec_.logit_scale == 1 && spec_.logit_softcap == 0) return;
  ops::cuda::softcap_cuda(device_.op, {.logits = workspace_.logits,
                                       .count = std::size_t{num_rows} * spec_.vocab_size,
                                       .scale = spec_.logit_scale,
                                       .cap = spec_.logit_softcap});
}

}  // namespace inferno::engine
