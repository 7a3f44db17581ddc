#include "engine/context.h"

#include <string>
#include <utility>

#include "engine/error.h"

namespace inferno::engine {
namespace {

constexpr std::uint32_t kMaxThreads = 1024;

std::uint32_t checked_threads(std::uint32_t num_threads) {
  if (num_threads >= 1 && num_threads <= kMaxThreads) return num_threads;
  throw Error(ErrorCode::kOther, "num_threads: expected 1 to " + std::to_string(kMaxThreads) +
                                     ", got " + std::to_string(num_threads));
}

ops::Isa checked_isa(ops::Isa isa) {
  if (ops::isa_available(isa)) return isa;
  throw Error(ErrorCode::kOther,
              std::string("isa: this machine has not got ") + ops::isa_name(isa));
}

}  // namespace

Context::Context(const DeviceOptions& options)
    : isa_(checked_isa(options.isa)),
      pool_(options.pool_bytes),
      threads_(checked_threads(options.num_threads)) {}

ModelPlan Context::add_model(const ModelShape& shape, const ModelLimits& limits) {
  auto model = std::make_unique<Model>(Device{pool_, threads_, isa_}, shape, limits);
  ModelPlan plan = model->plan();
  plan.model = next_model_++;
  models_.emplace(plan.model, std::move(model));
  return plan;
}

void Context::set_tensor(std::uint32_t model, std::string_view name, const TensorView& tensor) {
  find(model, ErrorCode::kOther).set_tensor(name, tensor);
}

void Context::fill_random(std::uint32_t model, std::uint64_t seed) {
  find(model, ErrorCode::kOther).fill_random(seed);
}

void Context::finish_model(std::uint32_t model) { find(model, ErrorCode::kOther).finish(); }

void Context::remove_model(std::uint32_t model) {
  find(model, ErrorCode::kOther);
  models_.erase(model);
}

StepOutput Context::run_step(std::uint32_t model, const StepBatch& batch) {
  return find(model, ErrorCode::kInvalidBatch).run_step(batch);
}

Model& Context::find(std::uint32_t model, ErrorCode code) {
  const auto found = models_.find(model);
  if (found == models_.end()) {
    throw Error(code, "model: " + std::to_string(model) + " is not on this device");
  }
  return *found->second;
}

MemoryNeed required_bytes(std::uint32_t num_threads, const ModelShape& shape,
                          const ModelLimits& limits) {
  check_shape(shape);
  check_limits(limits, shape);
  return {Weights::bytes_needed(shape), KvCache::bytes_per_block(shape, limits.block_size),
          Workspace::bytes_needed(shape, limits, checked_threads(num_threads))};
}

}  // namespace inferno::engine
