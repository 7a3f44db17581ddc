// One loaded model: its weights, KV blocks and workspace, and a step through it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/batch.h"
#include "engine/kv_cache.h"
#include "engine/memory_pool.h"
#include "engine/shape.h"
#include "engine/weights.h"
#include "engine/workspace.h"
#include "ops/op_context.h"

namespace inferno::engine {

// What a model stands on; the device outlives it.
struct Device {
  MemoryPool& pool;
  ThreadPool& threads;
  ops::Isa isa;
};

class Model {
 public:
  // Takes the memory, all or nothing. Throws out_of_memory, or other for a shape or limits that
  // make no sense.
  Model(const Device& device, const ModelShape& shape, const ModelLimits& limits);

  void set_tensor(std::string_view name, const TensorView& tensor);
  void fill_random(std::uint64_t seed);
  // Checks that the weights are complete and runs a step, so that the first request does not pay
  // for page faults.
  void finish();

  // One forward pass and sampling. Throws invalid_batch before anything is changed, or other for
  // logits that are no numbers. Takes no memory.
  StepOutput run_step(const StepBatch& batch);

  ModelPlan plan() const;

 private:
  ops::OpContext op_context() const { return {device_.threads, device_.isa, workspace_.ops}; }
  void warm_up();

  // The forward pass, in the order of the paper; model.cc.
  void gather_tokens(const StepBatch& batch);
  void forward(const StepBatch& batch);
  void attend(const LayerWeights& layer, const ops::KvLayer& kv, const StepBatch& batch);
  void feed_forward(const LayerWeights& layer, std::uint32_t num_tokens);
  std::uint32_t compute_logits(const StepBatch& batch);
  void sample(const StepBatch& batch, std::uint32_t num_rows);

  Device device_;
  ModelShape shape_;
  ModelLimits limits_;
  Weights weights_;
  KvCache kv_;
  Workspace workspace_;
  std::vector<float> inv_freq_;  // [head_dim / 2]

  // Between steps, by seat [max_batch_size].
  std::vector<std::uint32_t> last_sampled_;
  std::unique_ptr<bool[]> seat_filled_;
  // Of one step.
  std::unique_ptr<bool[]> seat_seen_;         // [max_batch_size]
  std::vector<std::uint32_t> sampled_;        // [max_batch_size]
  std::vector<std::uint32_t> row_of_logits_;  // [max_batch_size] the sequence of each logits row
  std::vector<ops::SampleStatus> sample_status_;  // [max_batch_size]
  bool finished_ = false;
};

}  // namespace inferno::engine
