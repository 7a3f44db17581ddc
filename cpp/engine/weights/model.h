// One loaded model: its weights, KV blocks and forward pass, and a step through it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/backend.h"
#include "engine/batch.h"
#include "engine/decoder.h"
#include "engine/memory/kv_cache.h"
#include "engine/spec/spec.h"
#include "engine/weights/weights.h"

namespace inferno::engine {

class Model {
 public:
  // Takes the memory, all or nothing; the device outlives it. Throws out_of_memory, or other for a
  // spec or limits that make no sense or that the device does not run.
  Model(Backend& device, const DecoderSpec& spec, const ModelLimits& limits);

  void set_tensor(const TensorSlot& slot, const TensorView& tensor);
  void fill_random(std::uint64_t seed);
  // Checks that the weights are complete, then, a call each, runs warm-up steps, so that the first
  // requests do not pay for them. Answers how many calls are left.
  std::uint32_t finish_part();

  // Gives a seat the sampler of a sequence; what it had is forgotten. history.end_token_ids is not
  // read: they are the model's. Throws invalid_batch before anything is changed.
  void bind_seat(const ops::SamplerSpec& spec, const ops::SeatHistory& history);
  // One forward pass and sampling; take_step gives the answer. Throws invalid_batch before anything
  // is changed. Takes no memory.
  void submit_step(const StepBatch& batch);
  bool step_has_ended() { return forward_->has_ended(); }
  StepOutput take_step() { return forward_->take(); }

  ModelPlan plan() const;

 private:
  // The forward pass, in the order of the paper.
  void pass();
  void run(const StepBatch& batch);
  void warm_up(const WarmUpStep& step);
  void bind_for_warm_up(std::uint32_t seat);

  DecoderSpec spec_;
  ModelLimits limits_;
  std::uint64_t workspace_bytes_;
  Weights weights_;
  KvCache kv_;
  Decoder decoder_;
  std::unique_ptr<Forward> forward_;

  std::vector<SeatState> seats_;       // [max_batch_size] between steps
  std::unique_ptr<bool[]> seat_seen_;  // [max_batch_size] of one step
  bool finished_ = false;
  std::uint32_t warmed_up_ = 0;  // of warm_up_steps()
};

}  // namespace inferno::engine
