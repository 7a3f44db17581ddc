#include "engine/context.h"

#include <string>
#include <utility>

#include "engine/base/error.h"
#include "engine/memory/kv_cache.h"
#include "engine/weights/weights.h"

namespace inferno::engine {

Context::Context(const DeviceOptions& options) : backend_(make_backend(options)) {
  in_flight_.reserve(backend_->max_in_flight());
}

ModelPlan Context::add_model(const DecoderSpec& spec, const ModelLimits& limits) {
  auto model = std::make_unique<Model>(*backend_, spec, limits);
  ModelPlan plan = model->plan();
  plan.model = next_model_++;
  models_.emplace(plan.model, std::move(model));
  return plan;
}

void Context::set_tensor(std::uint32_t model, const TensorSlot& slot, const TensorView& tensor) {
  find(model, ErrorCode::kOther).set_tensor(slot, tensor);
}

void Context::fill_random(std::uint32_t model, std::uint64_t seed) {
  find(model, ErrorCode::kOther).fill_random(seed);
}

std::uint32_t Context::finish_model_part(std::uint32_t model) {
  return find(model, ErrorCode::kOther).finish_part();
}

void Context::finish_model(std::uint32_t model) {
  while (finish_model_part(model) > 0) {
  }
}

void Context::remove_model(std::uint32_t model) {
  find(model, ErrorCode::kOther);
  for (const std::uint32_t busy : in_flight_) {
    if (busy == model) throw Error(ErrorCode::kOther, "model: a step of it is under way");
  }
  models_.erase(model);
}

void Context::bind_seat(std::uint32_t model, const ops::SamplerSpec& spec,
                        const ops::SeatHistory& history) {
  find(model, ErrorCode::kInvalidBatch).bind_seat(spec, history);
}

void Context::submit_step(std::uint32_t model, const StepBatch& batch) {
  Model& found = find(model, ErrorCode::kInvalidBatch);
  if (in_flight_.size() >= max_in_flight()) {
    throw Error(ErrorCode::kInvalidBatch,
                "expected at most " + std::to_string(max_in_flight()) + " steps under way");
  }
  found.submit_step(batch);
  in_flight_.push_back(model);
}

bool Context::step_has_ended() {
  if (in_flight_.empty()) return false;
  return find(in_flight_.front(), ErrorCode::kOther).step_has_ended();
}

StepOutput Context::take_step() {
  if (in_flight_.empty()) throw Error(ErrorCode::kInvalidBatch, "no step is under way");
  Model& model = find(in_flight_.front(), ErrorCode::kOther);
  in_flight_.erase(in_flight_.begin());
  return model.take_step();
}

StepOutput Context::run_step(std::uint32_t model, const StepBatch& batch) {
  submit_step(model, batch);
  return take_step();
}

Model& Context::find(std::uint32_t model, ErrorCode code) {
  const auto found = models_.find(model);
  if (found == models_.end()) {
    throw Error(code, "model: " + std::to_string(model) + " is not on this device");
  }
  return *found->second;
}

MemoryNeed required_bytes(const DeviceOptions& options, const DecoderSpec& spec,
                          const ModelLimits& limits) {
  check_spec(spec);
  check_limits(limits, spec);
  const std::unique_ptr<Sizes> sizes = make_sizes(options);
  sizes->check(spec, limits);
  return {Weights::bytes_needed(*sizes, spec), KvCache::bytes_per_block(spec, limits.block_size),
          sizes->workspace_bytes(spec, limits)};
}

}  // namespace inferno::engine
