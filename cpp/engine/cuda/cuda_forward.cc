#include "engine/cuda/cuda_forward.h"

#include <algorithm>
#include <utility>

#include "engine/error.h"
#include "ops/add_norm/add_norm_cuda.h"
#include "ops/embed/embed_cuda.h"
#include "ops/experts/cuda/route_cuda.h"
#include "ops/rms_norm/head_norm_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"
#include "ops/rope/rope_kv_cuda.h"
#include "ops/sample/sample_cuda.h"
#include "ops/softcap/softcap_cuda.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

// One range on the host as one on the device, in the stream.
void copy_up(void* to, const void* from, std::uint64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
}

// The graphs of prompts, then longer ones, doubled each time, for which products of many rows
// choose and load their kernels: the choice is made for every length then (linear_cuda.h), and
// longer prompts have no kernels that a shorter one has not met. Then the graphs of decodes.
std::vector<WarmUpStep> plan_warm_up(std::uint32_t longest_prompt,
                                     std::span<const std::uint32_t> prompt_sizes,
                                     std::span<const std::uint32_t> decode_sizes) {
  std::vector<WarmUpStep> steps;
  for (const std::uint32_t size : prompt_sizes) steps.push_back({1, size});
  const std::uint32_t longest = std::min(longest_prompt, 2048U);
  for (std::uint32_t length = 2 * kMaxPromptGraph; length < longest; length *= 2) {
    steps.push_back({1, length});
  }
  steps.push_back({1, longest});
  for (const std::uint32_t size : decode_sizes) steps.push_back({size, 1});
  return steps;
}

// Of a step.
std::uint32_t longest_prompt(const ModelLimits& limits) {
  return std::min(limits.max_step_tokens, limits.max_seq_len);
}

// The least that holds as many; none where all are smaller.
std::optional<std::uint32_t> size_for(std::span<const std::uint32_t> sizes, std::uint32_t count) {
  const auto size = std::lower_bound(sizes.begin(), sizes.end(), count);
  return size == sizes.end() ? std::nullopt : std::optional(*size);
}

ops::cuda::DeviceMatrix matrix_of(const ops::PackedWeights& weights) {
  return {weights.data, weights.shape.num_rows, weights.shape.num_columns, weights.shape.dtype};
}

ops::cuda::KvLayerCuda kv_layer_of(const ops::KvLayer& kv) {
  return {kv.k, kv.v, kv.dtype, kv.num_blocks, kv.block_size, kv.num_kv_heads, kv.head_dim};
}

ops::cuda::RowNorm row_norm(const Norm& norm) { return {norm.is_there(), norm.weight, norm.eps}; }

}  // namespace

CudaForward::CudaForward(const CudaDevice& device, const ForwardParts& parts)
    : device_(device),
      decoder_(parts.decoder),
      spec_(parts.decoder.spec),
      limits_(parts.limits),
      workspace_(device.pool, spec_, parts.limits),
      linear_(std::make_unique<ops::cuda::LinearCuda>(device.op, workspace_.linear,
                                                      parts.limits.max_step_tokens)),
      form_{ops::cuda::attention_tile_rows(spec_.layers[0].attention.num_heads,
                                           spec_.layers[0].attention.num_kv_heads),
            device.deterministic || device.reference_attention},
      block_table_stride_(parts.limits.max_blocks()),
      decode_sizes_(decode_graph_sizes(parts.limits.max_batch_size)),
      prompt_sizes_(prompt_graph_sizes(longest_prompt(parts.limits))),
      warm_up_steps_(plan_warm_up(longest_prompt(parts.limits), prompt_sizes_, decode_sizes_)) {
  linear_->set_batch_invariant(device.deterministic);
  const StepCounts largest = largest_step(spec_, limits_);
  if (const MlpSpec* mlp = first_experts(spec_)) {
    experts_ = std::make_unique<ops::cuda::ExpertsCuda>(device.op, experts_shape(spec_, *mlp),
                                                        largest.num_tokens, workspace_.experts);
    experts_->set_batch_invariant(device.deterministic);
  }
  for (auto& slot : slots_) slot = std::make_unique<StepSlot>(largest, block_table_stride_);
  answer_.reserve(limits_.max_batch_size);
  const cudaStream_t stream = device_.op.stream;
  check(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), stream), "cudaMemsetAsync");
  for (std::size_t i = 0; i < spec_.ropes.size(); ++i) {
    const std::vector<float>& inv_freq = spec_.ropes[i].inv_freq;
    copy_up(workspace_.inv_freq[i], inv_freq.data(), inv_freq.size() * sizeof(float), stream);
  }
  copy_up(workspace_.end_token_ids, limits_.end_token_ids.data(),
          limits_.end_token_ids.size() * sizeof(std::uint32_t), stream);
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

// The memory may be given to another model at once.
CudaForward::~CudaForward() {
  const auto alone = no_waiting_for_device();
  cudaStreamSynchronize(device_.op.stream);
  graphs_.clear();
  experts_.reset();
  linear_.reset();
}

// What a batch that only decodes, or one prompt, each sequence sampling, is padded to.
std::optional<StepCounts> CudaForward::graph_of(const StepCounts& counts) const {
  if (counts.num_rows != counts.num_seqs) return std::nullopt;
  if (counts.num_tokens == counts.num_seqs) {
    const auto size = size_for(decode_sizes_, counts.num_seqs);
    if (!size) return std::nullopt;
    return StepCounts{*size, *size, *size, form_.only_tiles ? 0 : *size,
                      form_.only_tiles ? *size : 0};
  }
  if (counts.num_seqs > 1) return std::nullopt;
  const auto size = size_for(prompt_sizes_, counts.num_tokens);
  // No tile without a token.
  if (!size || form_.num_tiles(*size) != counts.num_tiles) return std::nullopt;
  return StepCounts{*size, 1, 1, 0, counts.num_tiles};
}

void CudaForward::begin(const StepBatch& batch) {
  if (num_begun_ - num_taken_ >= slots_.size()) {
    throw Error(ErrorCode::kInvalidBatch, "two steps are under way already");
  }
  // A step that failed half-way may still read what is about to be filled.
  if (is_open_) check(cudaStreamSynchronize(device_.op.stream), "cudaStreamSynchronize");
  is_open_ = true;
  slot_ = slots_[num_begun_ % slots_.size()].get();
  const StepCounts counts = count(batch, form_);
  graph_ = graph_of(counts);
  slot_->fill(batch, form_, graph_.value_or(counts));
  StepArrays::place(slot_->counts(), workspace_.step, arrays_);
  slot_->step = device_.clock.begin(device_.op.stream);
  upload(*slot_);
}

void CudaForward::upload(const StepSlot& slot) {
  const cudaStream_t stream = device_.op.stream;
  copy_up(workspace_.step, slot.staged(), slot.staged_bytes(), stream);
  const std::size_t width = slot.block_table_stride * sizeof(std::uint32_t);
  if (width == 0 || slot.num_seqs == 0) return;
  check(cudaMemcpy2DAsync(workspace_.block_tables, block_table_stride_ * sizeof(std::uint32_t),
                          slot.block_tables(), width, width, slot.num_seqs, cudaMemcpyHostToDevice,
                          stream),
        "cudaMemcpy2DAsync");
}

void CudaForward::run(const std::function<void()>& pass) {
  if (!graph_) {
    const auto alone = no_waiting_for_device();
    return pass();
  }
  std::unique_ptr<CudaGraph>& graph = graphs_[*graph_];
  if (graph != nullptr) return graph->launch(device_.op.stream);
  const auto alone = no_waiting_for_device();
  // Once for real: whatever is set up at a first launch does not belong into the graph.
  pass();
  auto recorded = std::make_unique<CudaGraph>();
  recorded->record(device_.op.stream, pass);
  graph = std::move(recorded);
}

ops::cuda::LinearInput CudaForward::plain(const void* h, std::uint32_t num_rows) const {
  return {.h = h, .num_tokens = num_rows, .dtype = spec_.activation};
}

ops::cuda::LinearInput CudaForward::normed(InputFrom from, const Norm& norm) const {
  ops::cuda::LinearInput in = plain(workspace_.h, slot_->counts().num_tokens);
  const bool deferred = (from == InputFrom::Product && linear_->defers(in.num_tokens, in.dtype)) ||
                        (from == InputFrom::Experts && experts_->defers(in.num_tokens, in.dtype));
  if (deferred) in.square_sums = workspace_.square_sums;
  in.eps = norm.eps;
  return in;
}

ops::cuda::NextNorm CudaForward::next_norm(const Norm& norm) const {
  return {norm.weight, norm.eps, workspace_.h, workspace_.square_sums};
}

void CudaForward::embed() {
  ops::cuda::EmbedCudaArgs args{.table = matrix_of(decoder_.weights.embedding),
                                .token_ids = arrays_.token_ids,
                                .feed_seats = arrays_.feed_seats,
                                .sampled_ids = workspace_.sampled_ids,
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
  linear_->store(device_.op, normed(layer.attention_input, layer.pre_attention),
                 matrix_of(qkv.weight), qkv.bias, workspace_.qkv);
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
  ops::cuda::rope_kv_cuda(device_.op, kv_layer_of(*layer.kv), args);
}

void CudaForward::attend(const Layer& layer) {
  const AttentionSpec& a = *layer.attention;
  const StepCounts& counts = slot_->counts();
  norm_heads(layer);
  write_kv(layer);
  ops::cuda::attention_cuda(device_.op, kv_layer_of(*layer.kv),
                            {.qkv = workspace_.qkv,
                             .num_heads = a.num_heads,
                             .rule = {a.scale, a.window, a.softcap, layer.weights->sinks},
                             .num_seqs = counts.num_seqs,
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
}

void CudaForward::add_product(const Linear& linear, const void* in, const Join& join) {
  const ops::cuda::LinearInput input = plain(in, slot_->counts().num_tokens);
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
  linear_->gate(device_.op, normed(layer.mlp_input, layer.after_attention.next),
                matrix_of(gate_up.weight), gate_up.bias,
                {layer.mlp->activation, workspace_.gate_up, workspace_.gated});
}

void CudaForward::add_gated(const Layer& layer) {
  add_product(layer.weights->down, workspace_.gated, layer.after_mlp);
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
                         .weights = workspace_.expert_weights});
  const ops::cuda::ExpertsInput chosen{.h = in.h,
                                       .num_tokens = in.num_tokens,
                                       .square_sums = in.square_sums,
                                       .eps = in.eps,
                                       .expert_ids = workspace_.expert_ids,
                                       .weights = workspace_.expert_weights};
  const ops::ExpertsWeights experts{weights.expert_gate_up, weights.expert_down, mlp.activation};
  const Join& join = layer.after_mlp;
  if (join.is_plain()) {
    experts_->add(device_.op, chosen, experts, join.scale, workspace_.x, next_norm(join.next));
    return;
  }
  experts_->store(device_.op, chosen, experts, workspace_.branch);
  add_branch(join);
}

void CudaForward::project_logits() {
  const std::uint32_t num_rows = slot_->counts().num_rows;
  const Linear& head = decoder_.weights.head;
  ops::cuda::rms_norm_cuda(device_.op, {.x = workspace_.x,
                                        .rows = arrays_.last_tokens,
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

void CudaForward::sample() {
  const auto alone = no_waiting_for_device();
  const cudaStream_t stream = device_.op.stream;
  const auto num_rows = static_cast<std::uint32_t>(slot_->row_seqs.size());
  const auto num_end_tokens = static_cast<std::uint32_t>(limits_.end_token_ids.size());
  ops::cuda::sample_cuda(device_.op, {.logits = workspace_.logits,
                                      .params = arrays_.params,
                                      .seats = arrays_.seats,
                                      .num_rows = num_rows,
                                      .vocab_size = spec_.vocab_size,
                                      .end_token_ids = workspace_.end_token_ids,
                                      .num_end_tokens = num_end_tokens,
                                      .any_random = slot_->any_random,
                                      .any_filter = slot_->any_filter,
                                      .workspace = workspace_.sampler,
                                      .sampled = workspace_.sampled,
                                      .sampled_ids = workspace_.sampled_ids});
  if (num_rows > 0) {
    check(cudaMemcpyAsync(slot_->sampled(), workspace_.sampled, num_rows * sizeof(ops::Sampled),
                          cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
  }
  slot_->logits.resize(slot_->want_logits ? std::size_t{num_rows} * spec_.vocab_size : 0);
  if (!slot_->logits.empty()) {
    check(cudaMemcpyAsync(slot_->logits.data(), workspace_.logits,
                          slot_->logits.size() * sizeof(float), cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
  }
  device_.clock.end(slot_->step, stream);
  ++num_begun_;
  is_open_ = false;
}

bool CudaForward::has_ended() {
  return num_taken_ < num_begun_ &&
         device_.clock.has_ended(slots_[num_taken_ % slots_.size()]->step);
}

StepOutput CudaForward::take() {
  StepSlot& slot = *slots_[num_taken_++ % slots_.size()];
  StepClock& clock = device_.clock;
  clock.wait(slot.step);
  answer_.assign(slot.num_seqs, 0);
  for (std::size_t row = 0; row < slot.row_seqs.size(); ++row) {
    const ops::Sampled& sampled = slot.sampled()[row];
    if (sampled.status != ops::SampleStatus::kOk) {
      throw_not_sampled(slot.row_seqs[row], sampled.status);
    }
    answer_[slot.row_seqs[row]] = sampled.token_id;
  }
  return {answer_, slot.logits, clock.device_ms(slot.step), clock.idle_ms(slot.step)};
}

}  // namespace inferno::engine
