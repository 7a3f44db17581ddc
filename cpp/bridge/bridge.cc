// Maps the border's types to the engine's; no logic.
#include "bridge/bridge.h"

#include <vector>

#include "bridge/spec.h"
#include "engine/context.h"
#include "inferno-node/src/bridge.rs.h"
#include "ops/base/bandwidth.h"
#include "ops/base/product_rate.h"

namespace inferno {
namespace {

ops::Isa to_engine(Isa isa) {
  switch (isa) {
    case Isa::Portable:
      return ops::Isa::Portable;
    case Isa::Avx2:
      return ops::Isa::Avx2;
    case Isa::AvxVnni:
      return ops::Isa::AvxVnni;
    case Isa::Avx512Bf16:
      return ops::Isa::Avx512Bf16;
    case Isa::Amx:
      return ops::Isa::Amx;
    case Isa::Auto:
      break;
  }
  return ops::best_isa();
}

Isa to_border(ops::Isa isa) {
  switch (isa) {
    case ops::Isa::Avx2:
      return Isa::Avx2;
    case ops::Isa::AvxVnni:
      return Isa::AvxVnni;
    case ops::Isa::Avx512Bf16:
      return Isa::Avx512Bf16;
    case ops::Isa::Amx:
      return Isa::Amx;
    case ops::Isa::Portable:
      break;
  }
  return Isa::Portable;
}

ops::Factors to_engine(Factors factors) {
  switch (factors) {
    case Factors::Bf16:
      return ops::Factors::Bf16;
    case Factors::Bytes:
      return ops::Factors::Bytes;
    case Factors::Floats:
      break;
  }
  return ops::Factors::Floats;
}

engine::AttentionBackend to_engine(AttentionBackend attention) {
  switch (attention) {
    case AttentionBackend::Flash:
      return engine::AttentionBackend::Flash;
    case AttentionBackend::Reference:
      return engine::AttentionBackend::Reference;
    case AttentionBackend::Auto:
      break;
  }
  return engine::AttentionBackend::Auto;
}

engine::DeviceOptions to_engine(const DeviceOptions& options) {
  return {.num_threads = options.num_threads,
          .isa = to_engine(options.isa),
          .pool_bytes = options.pool_bytes,
          .backend = options.backend == Backend::Cuda ? engine::BackendKind::Cuda
                                                      : engine::BackendKind::Cpu,
          .attention = to_engine(options.attention),
          .deterministic = options.deterministic};
}

engine::ModelLimits to_engine(const ModelLimits& limits) {
  return {.block_size = limits.block_size,
          .kv_bytes = limits.kv_bytes,
          .max_batch_size = limits.max_batch_size,
          .max_step_tokens = limits.max_step_tokens,
          .max_seq_len = limits.max_seq_len,
          .end_token_ids = {limits.end_token_ids.begin(), limits.end_token_ids.end()}};
}

template <typename T>
std::span<const T> view(const rust::Vec<T>& values) {
  return {values.data(), values.size()};
}

// A view: `bias` outlives it.
ops::SamplerSpec to_engine(const SamplerSpec& spec, std::span<const ops::TokenBias> bias) {
  return {.temperature = spec.temperature,
          .top_k = spec.top_k,
          .top_p = spec.top_p,
          .min_p = spec.min_p,
          .seed = spec.seed,
          .presence_penalty = spec.presence_penalty,
          .frequency_penalty = spec.frequency_penalty,
          .repetition_penalty = spec.repetition_penalty,
          .end_from = spec.end_from,
          .stop_token_ids = view(spec.stop_token_ids),
          .bias = bias,
          .allowed_ids = view(spec.allowed_ids),
          .banned_ids = view(spec.banned_ids),
          .banned_words = view(spec.banned_words),
          .banned_word_lens = view(spec.banned_word_lens),
          .num_logprobs = spec.num_logprobs,
          .want_logprob = spec.want_logprob,
          .processed_logprobs = spec.processed_logprobs};
}

RowStatus to_border(engine::RowStatus status) {
  switch (status) {
    case engine::RowStatus::kSampled:
      return RowStatus::Sampled;
    case engine::RowStatus::kNotANumber:
      return RowStatus::NotANumber;
    case engine::RowStatus::kNothingLeft:
      return RowStatus::NothingLeft;
    case engine::RowStatus::kNone:
      break;
  }
  return RowStatus::None;
}

template <typename T>
void replace(rust::Vec<T>& out, std::span<const T> values) {
  out.clear();
  out.reserve(values.size());
  for (const T value : values) out.push_back(value);
}

}  // namespace

struct Context::Impl {
  explicit Impl(const engine::DeviceOptions& options) : context(options) {}
  engine::Context context;
};

Context::Context(const DeviceOptions& options)
    : impl_(std::make_unique<Impl>(to_engine(options))) {}
Context::~Context() = default;

ModelPlan Context::add_model(const DecoderSpec& spec, const ModelLimits& limits) {
  const engine::ModelPlan plan = impl_->context.add_model(to_engine(spec), to_engine(limits));
  return {plan.model, plan.num_blocks, plan.weight_bytes, plan.kv_bytes, plan.workspace_bytes};
}

void Context::set_tensor(std::uint32_t model, const TensorSlot& slot, const TensorRows& tensor) {
  impl_->context.set_tensor(
      model, {slot.part, slot.layer, slot.expert, slot.first_row},
      {.format = to_engine(tensor.format),
       .shape = {tensor.shape.data(), tensor.shape.size()},
       .data = std::as_bytes(std::span(tensor.data.data(), tensor.data.size())),
       .scales = {tensor.scales.data(), tensor.scales.size()},
       .offsets = {tensor.offsets.data(), tensor.offsets.size()}});
}

void Context::fill_random(std::uint32_t model, std::uint64_t seed) {
  impl_->context.fill_random(model, seed);
}

std::uint32_t Context::finish_model_part(std::uint32_t model) {
  return impl_->context.finish_model_part(model);
}

void Context::finish_model(std::uint32_t model) { impl_->context.finish_model(model); }

void Context::remove_model(std::uint32_t model) { impl_->context.remove_model(model); }

void Context::bind_seat(std::uint32_t model, std::uint32_t seat, const SamplerSpec& spec,
                        std::uint32_t prompt_len, rust::Slice<const std::uint32_t> token_ids) {
  std::vector<ops::TokenBias> bias;
  for (const TokenBias& entry : spec.bias) bias.push_back({entry.token_id, entry.value});
  impl_->context.bind_seat(
      model, to_engine(spec, bias),
      {.seat = seat, .prompt_len = prompt_len, .token_ids = {token_ids.data(), token_ids.size()}});
}

void Context::submit_step(const StepBatch& batch) {
  impl_->context.submit_step(batch.model, {.token_ids = view(batch.token_ids),
                                           .query_lens = view(batch.query_lens),
                                           .context_lens = view(batch.context_lens),
                                           .block_tables = view(batch.block_tables),
                                           .block_table_stride = batch.block_table_stride,
                                           .seats = view(batch.seats),
                                           .feed_sampled = view(batch.feed_sampled),
                                           .sample = view(batch.sample),
                                           .score = view(batch.score),
                                           .next_token_ids = view(batch.next_token_ids),
                                           .masks = view(batch.masks),
                                           .mask_rows = view(batch.mask_rows),
                                           .want_logits = batch.want_logits});
}

bool Context::step_has_ended() { return impl_->context.step_has_ended(); }

void Context::take_step(StepOutput& output) {
  const engine::StepOutput result = impl_->context.take_step();
  replace(output.token_ids, result.token_ids);
  output.status.clear();
  for (const engine::RowStatus status : result.statuses) output.status.push_back(to_border(status));
  replace(output.logprobs, result.logprobs);
  replace(output.top_starts, result.top_starts);
  replace(output.top_ids, result.top_ids);
  replace(output.top_logprobs, result.top_logprobs);
  replace(output.score_starts, result.score_starts);
  replace(output.score_logprobs, result.score_logprobs);
  replace(output.score_top_ids, result.score_top_ids);
  replace(output.score_top_logprobs, result.score_top_logprobs);
  replace(output.logits, result.logits);
  output.device_us = result.device_ms * 1e3F;
  output.idle_us = result.idle_ms * 1e3F;
}

void Context::run_step(const StepBatch& batch, StepOutput& output) {
  submit_step(batch);
  take_step(output);
}

std::uint32_t Context::max_in_flight() const noexcept { return impl_->context.max_in_flight(); }

MemoryStats Context::memory_stats() const {
  const engine::MemoryStats stats = impl_->context.memory_stats();
  return {stats.reserved_bytes, stats.used_bytes, stats.peak_bytes, stats.num_allocations};
}

Isa Context::isa() const noexcept { return to_border(impl_->context.isa()); }

std::unique_ptr<Context> new_context(const DeviceOptions& options) {
  return std::make_unique<Context>(options);
}

MemoryNeed required_bytes(const DeviceOptions& options, const DecoderSpec& spec,
                          const ModelLimits& limits) {
  const engine::MemoryNeed need =
      engine::required_bytes(to_engine(options), to_engine(spec), to_engine(limits));
  return {need.weight_bytes, need.kv_bytes_per_block, need.workspace_bytes};
}

bool reads_codes(const DeviceOptions& options, engine::MatrixRole role,
                 const WeightFormat& format) {
  return engine::make_sizes(to_engine(options))->reads(role, to_engine(format));
}

bool isa_available(Isa isa) noexcept { return ops::isa_available(to_engine(isa)); }

double measure_read_bandwidth(std::uint64_t bytes, std::uint32_t num_threads,
                              std::uint32_t rounds) {
  return ops::measure_read_bandwidth(bytes, num_threads, rounds);
}

double measure_product_rate(Isa isa, Factors factors, std::uint32_t num_threads) {
  return ops::measure_product_rate(to_engine(isa), to_engine(factors), num_threads);
}

}  // namespace inferno
