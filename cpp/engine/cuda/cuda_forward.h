// The parts of a decoder on a GPU. Steps are put into the device's stream and end there; the host
// waits only in take (and, for a step whose logits are wanted, in sample). Decode steps and short
// prompts alone replay a graph recorded for their size.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/backend.h"
#include "engine/cuda/cuda_memory.h"
#include "engine/cuda/cuda_step.h"
#include "engine/cuda/cuda_workspace.h"
#include "engine/decoder.h"
#include "ops/attention/cuda/attention_cuda.h"
#include "ops/cuda/cuda_op.h"
#include "ops/experts/cuda/experts_cuda.h"
#include "ops/linear/cuda/linear_cuda.h"

namespace inferno::engine {

// What a forward pass stands on; it outlives it.
struct CudaDevice {
  ops::cuda::CudaOp op;
  MemoryPool& pool;
  StepClock& clock;
  bool deterministic;
  bool reference_attention = false;
};

class CudaForward : public Forward {
 public:
  // Takes the workspace. Throws out_of_memory, or other where cuBLASLt cannot be opened.
  CudaForward(const CudaDevice& device, const ForwardParts& parts);
  ~CudaForward() override;

  void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) override;
  void begin(const StepBatch& batch) override;
  void run(const std::function<void()>& pass) override;
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
  void end() override;
  bool has_ended() override;
  StepOutput take() override;
  std::span<const WarmUpStep> warm_up_steps() const override { return warm_up_steps_; }

  // Of the step that is begun: whether attend() needs no kernel before attention.
  bool attention_turns(const Layer& layer) const;

 private:
  std::optional<StepCounts> graph_of(const StepCounts& counts) const;
  void upload(const StepSlot& slot);
  // logits [R, vocab_size] of the rows of x that `rows` [num_rows] names
  void project_rows(const std::uint32_t* rows, std::uint32_t num_rows);
  // h, and the sums that its norm still waits for.
  ops::cuda::LinearInput normed(const InputFrom& from, const Norm& norm) const;
  ops::cuda::LinearInput plain(const void* h, std::uint32_t num_rows) const;
  // The same, its columns in the order of the matrix.
  ops::cuda::LinearInput in_order(const Linear& linear, const ops::cuda::LinearInput& in) const;
  ops::cuda::NextNorm next_norm(const Norm& norm) const;
  // x += scale * after(linear(in)); h = next(x)
  void add_product(const Linear& linear, const void* in, const Join& join);
  // The same of what stands in `branch`.
  void add_branch(const Join& join) const;
  void norm_heads(const Layer& layer) const;
  void write_kv(const Layer& layer) const;

  CudaDevice device_;
  const Decoder& decoder_;
  const DecoderSpec& spec_;
  const ModelLimits& limits_;
  CudaWorkspace workspace_;
  CudaSampler sampler_;
  std::unique_ptr<ops::cuda::LinearCuda> linear_;
  std::unique_ptr<ops::cuda::ExpertsCuda> experts_;  // null where no layer has any
  StepForm form_;
  std::uint32_t block_table_stride_;  // on the device
  std::vector<std::uint32_t> decode_sizes_;
  std::vector<std::uint32_t> prompt_sizes_;
  std::vector<WarmUpStep> warm_up_steps_;
  std::map<StepCounts, std::unique_ptr<CudaGraph>> graphs_;  // by what a step is padded to

  // Two steps may be under way; which slot is next follows from how many were begun and taken.
  std::array<std::unique_ptr<StepSlot>, 2> slots_;
  std::uint64_t num_begun_ = 0;
  std::uint64_t num_taken_ = 0;
  StepAnswer answer_;

  // Of the step that is being put into the stream.
  StepSlot* slot_ = nullptr;
  bool is_open_ = false;  // begun, and not yet wholly in the stream
  StepArrays arrays_;     // on the device
  std::optional<StepCounts> graph_;
};

}  // namespace inferno::engine
