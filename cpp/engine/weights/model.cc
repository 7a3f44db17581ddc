// The forward pass of every family, written once: what a layer has is data (spec.h), what runs
// where is the backend's business. Vaswani et al., "Attention Is All You Need", 2017.
#include "engine/weights/model.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/error.h"

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
      seats_(limits.max_batch_size),
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

void Model::bind_seat(const ops::SamplerSpec& spec, const ops::SeatHistory& history) {
  const auto refuse = [](const std::string& what) {
    throw Error(ErrorCode::kInvalidBatch, "bind_seat: " + what);
  };
  if (!finished_) refuse("the model's weights are not finished");
  if (history.seat >= limits_.max_batch_size) {
    refuse("expected a seat less than " + std::to_string(limits_.max_batch_size) + ", got " +
           std::to_string(history.seat));
  }
  const std::size_t length = history.token_ids.size();
  if (length > limits_.max_seq_len || history.prompt_len > length) {
    refuse("expected a prompt of at most the sequence, and that of at most max_seq_len = " +
           std::to_string(limits_.max_seq_len) + " tokens, got " +
           std::to_string(history.prompt_len) + " and " + std::to_string(length));
  }
  for (const std::uint32_t id : history.token_ids) {
    if (id >= spec_.vocab_size) {
      refuse("expected token ids less than " + std::to_string(spec_.vocab_size) + ", got " +
             std::to_string(id));
    }
  }
  ops::check_sampler(spec, spec_.vocab_size);
  ops::SeatHistory ours = history;
  ours.end_token_ids = limits_.end_token_ids;
  forward_->bind(spec, ours);
  seats_[history.seat] = SeatState::kBound;
}

void Model::submit_step(const StepBatch& batch) {
  if (!finished_) throw Error(ErrorCode::kInvalidBatch, "model: its weights are not finished");
  const BatchBounds bounds{spec_.vocab_size,       limits_.block_size,      kv_.num_blocks(),
                           limits_.max_batch_size, limits_.max_step_tokens, limits_.max_seq_len};
  check_batch(batch, bounds, seats_, {seat_seen_.get(), limits_.max_batch_size});
  run(batch);
  for (std::uint32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    if (batch.sample[seq]) seats_[batch.seats[seq]] = SeatState::kFilled;
  }
}

void Model::run(const StepBatch& batch) {
  forward_->begin(batch);
  forward_->run([this] { pass(); });
  forward_->sample();
  forward_->score();
  forward_->end();
}

void Model::pass() {
  forward_->embed();
  for (const Layer& layer : decoder_.layers) {
    forward_->project_qkv(layer);
    forward_->attend(layer);
    forward_->add_attended(layer);
    if (layer.mlp->dense_size() > 0) {
      forward_->gate(layer);
      forward_->add_gated(layer);
    }
    if (layer.mlp->kind == MlpKind::Experts) forward_->add_experts(layer);
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
  // Only after a step that succeeded: until then a missing tensor can still be set.
  finished_ = true;
  ++warmed_up_;
  return static_cast<std::uint32_t>(steps.size()) - warmed_up_;
}

// Sequences that share block 0, which check_batch would refuse a caller; their seats are free
// again afterwards.
void Model::warm_up(const WarmUpStep& step) {
  const auto [num_seqs, query_len] = step;
  const std::size_t num_tokens = std::size_t{num_seqs} * query_len;
  const std::uint32_t stride = (query_len + limits_.block_size - 1) / limits_.block_size;
  const std::vector<std::uint32_t> zeros(
      std::max<std::size_t>(num_tokens, std::size_t{num_seqs} * stride));
  const std::vector<std::uint32_t> lens(num_seqs, query_len);
  const std::vector<std::uint32_t> none(num_seqs, ops::kNoToken);
  static_assert(ops::kNoToken == ops::kNoMaskRow);
  std::vector<std::uint32_t> seats(num_seqs);
  for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
    seats[seq] = seq;
    bind_for_warm_up(seq);
  }
  const auto flags = std::make_unique<bool[]>(std::size_t{3} * num_seqs);
  std::fill_n(flags.get(), num_seqs, true);
  flags[2 * num_seqs] = true;
  run({.token_ids = std::span(zeros).first(num_tokens),
       .query_lens = lens,
       .context_lens = lens,
       .block_tables = std::span(zeros).first(std::size_t{num_seqs} * stride),
       .block_table_stride = stride,
       .seats = seats,
       .feed_sampled = {flags.get() + num_seqs, num_seqs},
       .sample = {flags.get(), num_seqs},
       .score = {flags.get() + 2 * num_seqs, num_seqs},
       .next_token_ids = none,
       .mask_rows = none});
  const StepOutput output = forward_->take();
  for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
    if (output.statuses[seq] == RowStatus::kSampled) continue;
    throw Error(ErrorCode::kOther,
                "sequence " + std::to_string(seq) + ": logits that are no numbers");
  }
}

// Half of the rows are drawn, half are greedy, and the first wants everything, so that every kernel
// of the sampler runs.
void Model::bind_for_warm_up(std::uint32_t seat) {
  ops::SamplerSpec spec;
  if (seat % 2 == 0) {
    spec.temperature = 1;
    spec.top_k = 40;
    spec.top_p = 0.9F;
  }
  if (seat == 0) {
    spec.repetition_penalty = 1.1F;
    spec.num_logprobs = 1;
  }
  forward_->bind(spec, {.seat = seat});
}

}  // namespace inferno::engine
