// The forward pass of every family, written once: what a layer has is data (spec.h), what runs
// where is the backend's business. Vaswani et al., "Attention Is All You Need", 2017.
#include "engine/model.h"

#include <algorithm>
#include <vector>

#include "engine/error.h"

namespace inferno::engine {
namespace {

const DecoderSpec& checked(const Sizes& sizes, const DecoderSpec& spec, const ModelLimits& limits) {
  check_spec(spec);
  check_limits(limits, spec);
  sizes.check(spec, limits);
  return spec;
}

}  // namespace

Model::Model(Backend& device, const DecoderSpec& spec, const ModelLimits& limits)
    : spec_(checked(device.sizes(), spec, limits)),
      limits_(limits),
      workspace_bytes_(device.sizes().workspace_bytes(spec, limits)),
      weights_(device, spec_),
      kv_(device.pool(), spec_, limits),
      decoder_(spec_, weights_, kv_),
      forward_(device.make_forward({decoder_, limits_})),
      seat_filled_(std::make_unique<bool[]>(limits.max_batch_size)),
      seat_seen_(std::make_unique<bool[]>(limits.max_batch_size)) {}

void Model::set_tensor(const TensorSlot& slot, const TensorView& tensor) {
  if (finished_) throw Error(ErrorCode::kOther, "the model is finished; no tensor can be set");
  weights_.set(slot, tensor);
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
  const BatchBounds bounds{spec_.vocab_size,       limits_.block_size,      kv_.num_blocks(),
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
  forward_->embed();
  for (const Layer& layer : decoder_.layers) {
    forward_->project_qkv(layer);
    forward_->attend(layer);
    forward_->add_attended(layer);
    if (layer.mlp->kind == MlpKind::Experts) {
      forward_->add_experts(layer);
      continue;
    }
    forward_->gate(layer);
    forward_->add_gated(layer);
  }
  forward_->project_logits();
}

std::uint32_t Model::finish_part() {
  const std::span<const WarmUpStep> steps = forward_->warm_up_steps();
  if (finished_ && warmed_up_ == steps.size()) {
    throw Error(ErrorCode::kOther, "the model is finished already");
  }
  if (warmed_up_ == 0) weights_.check_complete();
  warm_up(steps[warmed_up_]);
  // Before anything ran well, a missing tensor may still be set.
  finished_ = true;
  ++warmed_up_;
  return static_cast<std::uint32_t>(steps.size()) - warmed_up_;
}

// Sequences that share block 0 and whose tokens may share its slots, which check_batch would refuse
// a caller. Half of the rows are drawn, half are greedy, so that every kernel of the sampler runs.
void Model::warm_up(const WarmUpStep& step) {
  const auto [num_seqs, query_len] = step;
  const std::size_t num_tokens = std::size_t{num_seqs} * query_len;
  const std::uint32_t stride = (query_len + limits_.block_size - 1) / limits_.block_size;
  const std::vector<std::uint32_t> zeros(std::max<std::size_t>(num_tokens, num_seqs * stride));
  const std::vector<std::uint32_t> context_lens(num_seqs, query_len);
  std::vector<std::uint32_t> positions(num_tokens);
  std::vector<std::uint32_t> slots(num_tokens);
  for (std::size_t i = 0; i < num_tokens; ++i) {
    positions[i] = static_cast<std::uint32_t>(i % query_len);
    slots[i] = positions[i] % limits_.block_size;
  }
  std::vector<std::uint32_t> cu_query_lens(num_seqs + 1);
  std::vector<std::uint32_t> seats(num_seqs);
  std::vector<ops::SampleParams> params(num_seqs);
  for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
    cu_query_lens[seq + 1] = (seq + 1) * query_len;
    seats[seq] = seq;
    if (seq % 2 == 0) params[seq] = {.temperature = 1, .top_k = 40, .top_p = 0.9F};
  }
  const auto flags = std::make_unique<bool[]>(std::size_t{2} * num_seqs);
  std::fill_n(flags.get(), num_seqs, true);
  forward_->begin({.token_ids = std::span(zeros).first(num_tokens),
                   .positions = positions,
                   .slot_mapping = slots,
                   .cu_query_lens = cu_query_lens,
                   .context_lens = context_lens,
                   .block_tables = std::span(zeros).first(std::size_t{num_seqs} * stride),
                   .block_table_stride = stride,
                   .seats = seats,
                   .feed_sampled = {flags.get() + num_seqs, num_seqs},
                   .sample = {flags.get(), num_seqs},
                   .sampling = params});
  forward_->run([this] { pass(); });
  forward_->sample();
  forward_->take();
}

}  // namespace inferno::engine
