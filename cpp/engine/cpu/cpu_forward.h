// The parts of a decoder on the CPU. A step runs in the call that submits it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/cpu/cpu_sampler.h"
#include "engine/cpu/cpu_workspace.h"
#include "engine/decoder.h"
#include "engine/step_answer.h"
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

  void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) override;
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
  void score() override;
  void end() override {}
  bool has_ended() override { return true; }
  StepOutput take() override;
  std::span<const WarmUpStep> warm_up_steps() const override { return warm_up_steps_; }

 private:
  ops::OpContext op_context() const { return {device_.threads, device_.isa, workspace_.ops}; }
  // logits [R, vocab_size] of `num_rows` rows of last [R, hidden_size], which is normed in place
  void project_last(std::uint32_t num_rows);
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
  CpuSampler sampler_;

  // Of one step.
  StepBatch batch_;                           // good from begin to the end of the submitting call
  std::vector<std::uint32_t> positions_;      // [T]
  std::vector<std::uint32_t> slot_mapping_;   // [T]
  std::vector<std::uint32_t> cu_query_lens_;  // [S + 1]
  std::vector<std::uint32_t> row_seqs_;       // [R] the sequence of each row of logits
  std::vector<ScoredToken> scored_;
  std::span<const float> logits_;     // that are wanted
  std::vector<float> wanted_logits_;  // where scores need the place of the rows' own
  StepAnswer answer_;
};

}  // namespace inferno::engine
