// The forward pass of the Llama family, written once: what runs where is the ops' business.
// Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023; Grattafiori et al.,
// "The Llama 3 Herd of Models", 2024. T tokens of S sequences; R of these are sampled.
#include "engine/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/error.h"
#include "ops/attention.h"
#include "ops/embed.h"
#include "ops/kv_write.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/silu_mul.h"

namespace inferno::engine {
namespace {

const ModelShape& checked(const ModelShape& shape, const ModelLimits& limits) {
  check_shape(shape);
  check_limits(limits, shape);
  return shape;
}

}  // namespace

Model::Model(const Device& device, const ModelShape& shape, const ModelLimits& limits)
    : device_(device),
      shape_(checked(shape, limits)),
      limits_(limits),
      weights_(device.pool, shape),
      kv_(device.pool, shape, limits),
      workspace_(device.pool, shape, limits, device.threads.num_threads()),
      inv_freq_(shape.head_dim / 2),
      last_sampled_(limits.max_batch_size),
      seat_filled_(std::make_unique<bool[]>(limits.max_batch_size)),
      seat_seen_(std::make_unique<bool[]>(limits.max_batch_size)),
      sampled_(limits.max_batch_size),
      row_of_logits_(limits.max_batch_size),
      sample_status_(limits.max_batch_size) {
  ops::rope_inv_freq(
      {shape.head_dim, shape.rope_theta, shape.rope_scaling, shape.rope_factor,
       shape.rope_low_freq_factor, shape.rope_high_freq_factor, shape.rope_original_max_positions},
      inv_freq_);
}

void Model::set_tensor(std::string_view name, const TensorView& tensor) {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished; no tensor can be set");
  weights_.set(op_context(), name, tensor);
}

void Model::fill_random(std::uint64_t seed) {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished; no tensor can be set");
  weights_.fill_random(op_context(), seed);
}

ModelPlan Model::plan() const {
  return {0, kv_.num_blocks(), weights_.bytes(), kv_.bytes(), workspace_.all().size()};
}

StepOutput Model::run_step(const StepBatch& batch) {
  if (!finished_) throw Error(ErrorCode::kInvalidBatch, "model: its weights are not finished");
  const BatchBounds bounds{shape_.vocab_size,      limits_.block_size,      kv_.num_blocks(),
                           limits_.max_batch_size, limits_.max_step_tokens, limits_.max_seq_len};
  check_batch(batch, bounds, {seat_filled_.get(), limits_.max_batch_size},
              {seat_seen_.get(), limits_.max_batch_size});
  gather_tokens(batch);
  forward(batch);
  const std::uint32_t num_rows = compute_logits(batch);
  sample(batch, num_rows);
  const std::size_t num_logits = std::size_t{num_rows} * shape_.vocab_size;
  return {std::span(sampled_).first(batch.num_seqs()),
          {workspace_.logits, batch.want_logits ? num_logits : 0}};
}

// token_ids [T], with the token that the host has not seen yet in its place.
void Model::gather_tokens(const StepBatch& batch) {
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), workspace_.token_ids);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.feed_sampled[seq]) continue;
    workspace_.token_ids[batch.cu_query_lens[seq]] = last_sampled_[batch.seats[seq]];
  }
}

void Model::forward(const StepBatch& batch) {
  const std::uint32_t num_tokens = batch.num_tokens();
  const ops::OpContext context = op_context();
  // x [T, hidden_size]
  ops::embed(context, weights_.embedding, {workspace_.token_ids, num_tokens}, workspace_.x);
  ops::rope_angles(context, inv_freq_, batch.positions, workspace_.cos_sin);
  for (std::uint32_t i = 0; i < shape_.num_layers; ++i) {
    attend(weights_.layers[i], kv_.layer(i), batch);
    feed_forward(weights_.layers[i], num_tokens);
  }
}

// x += o_proj(attention(rope(q), rope(k), v)) with q, k, v = qkv_proj(norm(x))
void Model::attend(const LayerWeights& layer, const ops::KvLayer& kv, const StepBatch& batch) {
  const ops::OpContext context = op_context();
  const Workspace& w = workspace_;
  const std::uint32_t num_tokens = batch.num_tokens();
  const std::size_t row = shape_.qkv_size();
  // h [T, hidden_size]
  ops::rms_norm(context,
                {w.x, layer.input_norm, shape_.rms_norm_eps, num_tokens, shape_.hidden_size, w.h});
  // qkv [T, num_heads + 2 num_kv_heads, head_dim]: a token's q heads, k heads, v heads
  ops::matmul(context, {w.h, num_tokens, layer.qkv.weight, layer.qkv.bias, w.qkv, false});
  ops::rope(context, {w.qkv, row, w.cos_sin, num_tokens, shape_.num_heads + shape_.num_kv_heads,
                      shape_.head_dim});
  // A token's own K and V are read back from the cache too: so a chunk's borders leave no trace in
  // its bits.
  ops::kv_write(context, kv,
                {w.qkv + shape_.q_size(), w.qkv + shape_.q_size() + shape_.kv_size(), row,
                 batch.slot_mapping});
  // attended [T, num_heads, head_dim]
  ops::attention(context, kv,
                 {w.qkv, row, shape_.num_heads,
                  1.0F / std::sqrt(static_cast<float>(shape_.head_dim)), batch.cu_query_lens,
                  batch.context_lens, batch.block_tables, batch.block_table_stride, w.attended});
  ops::matmul(context, {w.attended, num_tokens, layer.o.weight, layer.o.bias, w.x, true});
}

// x += down_proj(silu(gate_proj(norm(x))) * up_proj(norm(x)))
void Model::feed_forward(const LayerWeights& layer, std::uint32_t num_tokens) {
  const ops::OpContext context = op_context();
  const Workspace& w = workspace_;
  // h [T, hidden_size]
  ops::rms_norm(context, {w.x, layer.post_attention_norm, shape_.rms_norm_eps, num_tokens,
                          shape_.hidden_size, w.h});
  // gate_up [T, 2, intermediate_size]
  ops::matmul(context,
              {w.h, num_tokens, layer.gate_up.weight, layer.gate_up.bias, w.gate_up, false});
  // gated [T, intermediate_size]
  ops::silu_mul(context, {w.gate_up, num_tokens, shape_.intermediate_size, w.gated});
  ops::matmul(context, {w.gated, num_tokens, layer.down.weight, layer.down.bias, w.x, true});
}

// logits [R, vocab_size] of the last token of each sequence that samples; the others need none.
// Returns R.
std::uint32_t Model::compute_logits(const StepBatch& batch) {
  const ops::OpContext context = op_context();
  const Workspace& w = workspace_;
  const std::size_t hidden_size = shape_.hidden_size;
  std::uint32_t num_rows = 0;
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (!batch.sample[seq]) continue;
    const std::size_t token = batch.cu_query_lens[seq + 1] - 1;
    std::copy_n(w.x + token * hidden_size, hidden_size, w.last + num_rows * hidden_size);
    row_of_logits_[num_rows++] = seq;
  }
  // last [R, hidden_size]
  ops::rms_norm(context, {w.last, weights_.final_norm, shape_.rms_norm_eps, num_rows,
                          shape_.hidden_size, w.last});
  ops::matmul(context,
              {w.last, num_rows, weights_.lm_head.weight, weights_.lm_head.bias, w.logits, false});
  return num_rows;
}

void Model::sample(const StepBatch& batch, std::uint32_t num_rows) {
  const std::size_t vocab_size = shape_.vocab_size;
  std::fill_n(sampled_.begin(), batch.num_seqs(), 0);
  device_.threads.parallel_for(num_rows, [&](std::uint32_t row, std::uint32_t thread) {
    const std::uint32_t seq = row_of_logits_[row];
    const ops::SampleScratch scratch{{workspace_.weights + thread * vocab_size, vocab_size},
                                     {workspace_.ranked + thread * vocab_size, vocab_size}};
    const ops::Sampled sampled =
        ops::sample_row({workspace_.logits + row * vocab_size, vocab_size}, batch.sampling[seq],
                        limits_.end_token_ids, scratch);
    sampled_[seq] = sampled.token_id;
    sample_status_[row] = sampled.status;
  });
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    if (sample_status_[row] == ops::SampleStatus::kOk) continue;
    const bool rubbish = sample_status_[row] == ops::SampleStatus::kNotANumber;
    throw Error(ErrorCode::kOther, "sequence " + std::to_string(row_of_logits_[row]) +
                                       (rubbish ? ": logits that are no numbers"
                                                : ": no token is left to be sampled"));
  }
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    const std::uint32_t seq = row_of_logits_[row];
    last_sampled_[batch.seats[seq]] = sampled_[seq];
    seat_filled_[batch.seats[seq]] = true;
  }
}

void Model::finish() {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished already");
  weights_.check_complete();
  finished_ = true;
  try {
    warm_up();
  } catch (...) {
    finished_ = false;
    throw;
  }
}

// Touches the workspace, then runs one short sequence in block 0. KV blocks get their pages when
// they are first used: a node that never fills its cache never pays for it.
void Model::warm_up() {
  const std::span<std::byte> all = workspace_.all();
  std::memset(all.data(), 0, all.size());
  const std::uint32_t length =
      std::min({limits_.block_size, limits_.max_step_tokens, limits_.max_seq_len, 8U});
  const std::vector<std::uint32_t> zeros(length);
  std::vector<std::uint32_t> positions(length);
  for (std::uint32_t i = 0; i < length; ++i) positions[i] = i;
  const std::uint32_t cu_query_lens[] = {0, length};
  const bool no[] = {false};
  const bool yes[] = {true};
  const ops::SampleParams params[] = {{.temperature = 1, .top_k = 40, .top_p = 0.9F}};
  run_step({.token_ids = zeros,
            .positions = positions,
            .slot_mapping = positions,
            .cu_query_lens = cu_query_lens,
            .context_lens = {&length, 1},
            .block_tables = std::span(zeros).first(1),
            .block_table_stride = 1,
            .seats = std::span(zeros).first(1),
            .feed_sampled = no,
            .sample = yes,
            .sampling = params});
  seat_filled_[0] = false;
}

}  // namespace inferno::engine
