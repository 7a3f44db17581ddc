// The forward pass of the Llama family, written once: what runs where is the backend's business.
// Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023; Grattafiori et al.,
// "The Llama 3 Herd of Models", 2024.
#include "engine/model.h"

#include <algorithm>
#include <vector>

#include "engine/error.h"

namespace inferno::engine {
namespace {

const ModelShape& checked(const Sizes& sizes, const ModelShape& shape, const ModelLimits& limits) {
  check_shape(shape);
  check_limits(limits, shape);
  sizes.check(shape, limits);
  return shape;
}

}  // namespace

Model::Model(Backend& device, const ModelShape& shape, const ModelLimits& limits)
    : shape_(checked(device.sizes(), shape, limits)),
      limits_(limits),
      workspace_bytes_(device.sizes().workspace_bytes(shape, limits)),
      weights_(device, shape),
      kv_(device.pool(), shape, limits),
      forward_(device.make_forward({shape_, limits_, kv_})),
      seat_filled_(std::make_unique<bool[]>(limits.max_batch_size)),
      seat_seen_(std::make_unique<bool[]>(limits.max_batch_size)) {}

void Model::set_tensor(std::string_view name, const TensorView& tensor) {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished; no tensor can be set");
  weights_.set(name, tensor);
}

void Model::fill_random(std::uint64_t seed) {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished; no tensor can be set");
  weights_.fill_random(seed);
}

ModelPlan Model::plan() const {
  return {0, kv_.num_blocks(), weights_.bytes(), kv_.bytes(), workspace_bytes_};
}

void Model::submit_step(const StepBatch& batch) {
  if (!finished_) throw Error(ErrorCode::kInvalidBatch, "model: its weights are not finished");
  const BatchBounds bounds{shape_.vocab_size,      limits_.block_size,      kv_.num_blocks(),
                           limits_.max_batch_size, limits_.max_step_tokens, limits_.max_seq_len};
  check_batch(batch, bounds, {seat_filled_.get(), limits_.max_batch_size},
              {seat_seen_.get(), limits_.max_batch_size});
  forward_->begin(batch);
  forward_->run([this] { pass(); });
  forward_->sample();
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (batch.sample[seq]) seat_filled_[batch.seats[seq]] = true;
  }
}

void Model::pass() {
  forward_->embed(weights_);
  for (std::uint32_t i = 0; i < shape_.num_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    forward_->project_qkv(layer);
    forward_->attend(i);
    forward_->add_attended(layer);
    forward_->gate(layer);
    forward_->add_gated(layer, i + 1 < shape_.num_layers ? &weights_.layers[i + 1] : nullptr);
  }
  forward_->project_logits(weights_);
}

std::uint32_t Model::finish_part() {
  const std::span<const std::uint32_t> batches = forward_->warm_up_batches();
  if (!finished_) {
    weights_.check_complete();
    finished_ = true;
    try {
      warm_up_prefill();
    } catch (...) {
      finished_ = false;
      throw;
    }
  } else if (warmed_up_ < batches.size()) {
    warm_up_decode(batches[warmed_up_++]);
  } else {
    throw Error(ErrorCode::kOther, "the model is finished already");
  }
  std::fill_n(seat_filled_.get(), limits_.max_batch_size, false);
  return static_cast<std::uint32_t>(batches.size()) - warmed_up_;
}

// One short sequence in block 0.
void Model::warm_up_prefill() {
  const std::uint32_t length =
      std::min({limits_.block_size, limits_.max_step_tokens, limits_.max_seq_len, 8U});
  const std::vector<std::uint32_t> zeros(length);
  std::vector<std::uint32_t> positions(length);
  for (std::uint32_t i = 0; i < length; ++i) positions[i] = i;
  const std::uint32_t cu_query_lens[] = {0, length};
  const bool no[] = {false};
  const bool yes[] = {true};
  const ops::SampleParams params[] = {{.temperature = 1, .top_k = 40, .top_p = 0.9F}};
  submit_step({.token_ids = zeros,
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
  take_step();
}

// Sequences of one token. They share slot 0, which check_batch would refuse a caller.
void Model::warm_up_decode(std::uint32_t num_seqs) {
  const std::vector<std::uint32_t> zeros(num_seqs);
  const std::vector<std::uint32_t> ones(num_seqs, 1);
  std::vector<std::uint32_t> seats(num_seqs + 1);
  for (std::uint32_t i = 0; i <= num_seqs; ++i) seats[i] = i;
  const auto flags = std::make_unique<bool[]>(2 * num_seqs);
  std::fill_n(flags.get(), num_seqs, true);
  const std::vector<ops::SampleParams> params(num_seqs);
  forward_->begin({.token_ids = zeros,
                   .positions = zeros,
                   .slot_mapping = zeros,
                   .cu_query_lens = seats,
                   .context_lens = ones,
                   .block_tables = zeros,
                   .block_table_stride = 1,
                   .seats = std::span(seats).first(num_seqs),
                   .feed_sampled = {flags.get() + num_seqs, num_seqs},
                   .sample = {flags.get(), num_seqs},
                   .sampling = params});
  forward_->run([this] { pass(); });
  forward_->sample();
  forward_->take();
}

}  // namespace inferno::engine
