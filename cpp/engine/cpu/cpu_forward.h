// The parts of a decoder on the CPU. A step runs in the call that submits it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/cpu/cpu_workspace.h"
#include "engine/decoder.h"
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
  void embed() override;
  void project_qkv(const Layer& layer) override;
  void attend(const Layer& layer) override;
  void add_attended(const Layer& layer) override;
  void gate(const Layer& layer) override;
  void add_gated(const Layer& layer) override;
  void add_experts(const Layer& layer) override;
  void project_logits() override;
  void sample() override;
  bool has_ended() override { return true; }
  StepOutput take() override;
  std::span<const WarmUpStep> warm_up_steps() const override { return warm_up_steps_; }

 private:
  ops::OpContext op_context() const { return {device_.threads, device_.isa, workspace_.ops}; }
  // out [T, outputs] = linear(in [T, inputs])
  void product(const Linear& linear, const float* in, float* out, bool accumulate) const;
  // h [T, hidden_size] = norm(x)
  void norm_x(const Norm& norm) const;
  // x += scale * after(linear(in)); h = next(x)
  void add_product(const Linear& linear, const float* in, const Join& join) const;
  // The same of what stands in `branch`.
  void add_branch(const Join& join) const;
  void norm_heads(const Layer& layer) const;
  void turn_heads(const AttentionSpec& attention) const;

  CpuDevice device_;
  const Decoder& decoder_;
  const DecoderSpec& spec_;
  const ModelLimits& limits_;
  CpuWorkspace workspace_;
  std::vector<WarmUpStep> warm_up_steps_;
  std::vector<std::uint32_t> last_sampled_;  // [max_batch_size] by seat

  // Of one step.
  StepBatch batch_;  // good from begin to the end of the submitting call
  std::uint32_t num_rows_ = 0;
  std::size_t num_logits_ = 0;                    // wanted
  std::vector<std::uint32_t> sampled_;            // [S]
  std::vector<std::uint32_t> row_of_logits_;      // [max_batch_size] the sequence of each row
  std::vector<ops::SampleStatus> sample_status_;  // [max_batch_size]
};

}  // namespace inferno::engine
