// One CPU device as the border sees it: threads, memory pool, models.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "engine/batch.h"
#include "engine/error.h"
#include "engine/memory_pool.h"
#include "engine/model.h"
#include "engine/shape.h"
#include "engine/thread_pool.h"

namespace inferno::engine {

// Used by one thread at a time. Every call may throw; see error.h.
class Context {
 public:
  // Throws out_of_memory if the pool cannot be reserved, other for an instruction set that the
  // machine has not got.
  explicit Context(const DeviceOptions& options);

  ModelPlan add_model(const ModelShape& shape, const ModelLimits& limits);
  void set_tensor(std::uint32_t model, std::string_view name, const TensorView& tensor);
  void fill_random(std::uint32_t model, std::uint64_t seed);
  void finish_model(std::uint32_t model);
  void remove_model(std::uint32_t model);

  // The views in the answer are good until the next call.
  StepOutput run_step(std::uint32_t model, const StepBatch& batch);

  MemoryStats memory_stats() const { return pool_.stats(); }
  ops::Isa isa() const { return isa_; }

 private:
  Model& find(std::uint32_t model, ErrorCode code);

  ops::Isa isa_;
  MemoryPool pool_;
  ThreadPool threads_;
  std::unordered_map<std::uint32_t, std::unique_ptr<Model>> models_;
  std::uint32_t next_model_ = 1;  // handles are not used again
};

// What a pool must hold for a model on a device with so many threads; nothing is taken.
MemoryNeed required_bytes(std::uint32_t num_threads, const ModelShape& shape,
                          const ModelLimits& limits);

}  // namespace inferno::engine
