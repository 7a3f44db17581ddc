// The parts of a decoder on the CPU. A step runs in the call that submits it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/cpu/cpu_sampler.h"
#include "engine/cpu/cpu_workspace.h"
#include "engine/kv_cache.h"
#include "engine/step_answer.h"
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

  void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) override;
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
  void score() override;
  void end() override {}
  bool has_ended() override { return true; }
  StepOutput take() override;
  std::span<const WarmUpStep> warm_up_steps() const override { return warm_up_steps_; }

 private:
  ops::OpContext op_context() const { return {device_.threads, device_.isa, workspace_.ops}; }
  // logits [R, vocab_size] of `num_rows` rows of last [R, hidden_size], which is normed in place
  void project_last(std::uint32_t num_rows);
  // h [T, hidden_size]
  void norm(const float* weight);

  CpuDevice device_;
  const ModelShape& shape_;
  const ModelLimits& limits_;
  const KvCache& kv_;
  CpuWorkspace workspace_;
  std::vector<WarmUpStep> warm_up_steps_;
  std::vector<float> inv_freq_;  // [head_dim / 2]
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
  const Weights* weights_ = nullptr;
  StepAnswer answer_;
};

}  // namespace inferno::engine
