// The parts of a decoder on the CPU. A step runs in the call that submits it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/cpu/cpu_workspace.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"
#include "ops/base/op_context.h"

namespace inferno::engine {

// What a forward pass stands on; it outlives it.
struct CpuDevice {
  MemoryPool& pool;
  ThreadPool& threads;
  ops::Isa isa;
  ops::Isa attention_isa;
};

class CpuForward : public Forward {
 public:
  // Takes the workspace. Throws out_of_memory.
  CpuForward(const CpuDevice& device, const ForwardParts& parts);

  void begin(const StepBatch& batch) override;
  void run(const std::function<void()>& pass) override { pass(); }
  void embed(const Weights& weights) override;
  void project_qkv(const LayerWeights& layer) override;
  void attend(std::uint32_t layer) override;
  void add_attended(const LayerWeights& layer) override;
  void gate(const LayerWeights& layer) override;
  void add_gated(const LayerWeights& layer, const LayerWeights* next) override;
  void project_logits(const Weights& weights) override;
  void sample() override;
  bool has_ended() override { return true; }
  StepOutput take() override;
  std::span<const WarmUpStep> warm_up_steps() const override { return warm_up_steps_; }

 private:
  ops::OpContext op_context() const { return {device_.threads, device_.isa, workspace_.ops}; }
  // h [T, hidden_size]
  void norm(const float* weight);

  CpuDevice device_;
  const ModelShape& shape_;
  const ModelLimits& limits_;
  const KvCache& kv_;
  CpuWorkspace workspace_;
  std::vector<WarmUpStep> warm_up_steps_;
  std::vector<float> inv_freq_;              // [head_dim / 2]
  std::vector<std::uint32_t> last_sampled_;  // [max_batch_size] by seat

  // Of one step.
  StepBatch batch_;  // good from begin to the end of the submitting call
  std::uint32_t num_rows_ = 0;
  std::size_t num_logits_ = 0;                    // wanted
  std::vector<std::uint32_t> sampled_;            // [S]
  std::vector<std::uint32_t> row_of_logits_;      // [max_batch_size] the sequence of each row
  std::vector<ops::SampleStatus> sample_status_;  // [max_batch_size]
};

// The CPU's and the GPU's word for a row that could not be sampled. Throws other.
[[noreturn]] void throw_not_sampled(std::uint32_t seq, ops::SampleStatus status);

}  // namespace inferno::engine
