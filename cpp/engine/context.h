// One device as the border sees it: its backend and its models.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/backend.h"
#include "engine/base/error.h"
#include "engine/batch.h"
#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"
#include "engine/weights/model.h"

namespace inferno::engine {

// Used by one thread at a time. Every call may throw; see error.h.
class Context {
 public:
  // Throws as make_backend.
  explicit Context(const DeviceOptions& options);

  ModelPlan add_model(const DecoderSpec& spec, const ModelLimits& limits);
  void set_tensor(std::uint32_t model, const TensorSlot& slot, const TensorView& tensor);
  void fill_random(std::uint32_t model, std::uint64_t seed);
  // Does the next part of making a model ready; answers how many parts are left.
  std::uint32_t finish_model_part(std::uint32_t model);
  // All of them.
  void finish_model(std::uint32_t model);
  void remove_model(std::uint32_t model);

  // See Model::bind_seat. Steps that are under way go on with what the seat had.
  void bind_seat(std::uint32_t model, const ops::SamplerSpec& spec,
                 const ops::SeatHistory& history);
  // Steps are taken in the order in which they were submitted; at most max_in_flight() are under
  // way.
  void submit_step(std::uint32_t model, const StepBatch& batch);
  // Whether take_step would not wait.
  bool step_has_ended();
  // The oldest step's answer; its views are good until the next call.
  StepOutput take_step();
  std::uint32_t max_in_flight() const { return backend_->max_in_flight(); }

  // Both at once.
  StepOutput run_step(std::uint32_t model, const StepBatch& batch);

  MemoryStats memory_stats() const { return backend_->pool().stats(); }
  ops::Isa isa() const { return backend_->isa(); }

 private:
  Model& find(std::uint32_t model, ErrorCode code);

  std::unique_ptr<Backend> backend_;
  std::unordered_map<std::uint32_t, std::unique_ptr<Model>> models_;
  std::vector<std::uint32_t> in_flight_;  // the model of each step, oldest first
  std::uint32_t next_model_ = 1;          // handles are not used again
};

// What a pool must hold for a model on such a device; nothing is taken, and the device need not be
// there.
MemoryNeed required_bytes(const DeviceOptions& options, const DecoderSpec& spec,
                          const ModelLimits& limits);

}  // namespace inferno::engine
