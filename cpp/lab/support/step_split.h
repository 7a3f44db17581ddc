// Where the time of a step goes: its parts by the engine's own code, each for all layers
// recorded and timed by itself, as nothing in the engine looks at a step from inside. What overlaps
// in a step (a kernel's start with its predecessor's end) does so here only within a part.
#pragma once

#include <cstdint>
#include <functional>

#include "engine/cuda/cuda_backend.h"
#include "engine/cuda/cuda_forward.h"
#include "engine/decoder.h"
#include "lab/support/bench_model.h"
#include "lab/support/gpu_bench.h"

namespace inferno::lab {

// Milliseconds of a whole step.
struct StepParts {
  double attention = 0;
  double products = 0;   // with what their kernels do beside them: activation, norms
  double embedding = 0;  // with the first norm and the angles
  double rope_kv = 0;
  double norms = 0;  // those with kernels of their own
  double activation = 0;
  double sampler = 0;

  double other() const { return embedding + rope_kv + norms + activation + sampler; }
  double sum() const { return attention + products + other(); }
};

// A model of random weights with what runs it. Its limits outlive it.
class StepSplit {
 public:
  StepSplit(const engine::LlamaShape& shape, const engine::ModelLimits& limits,
            const engine::DeviceOptions& options);

  StepParts measure(const StepOfEquals& step);

 private:
  double ms(const std::function<void()>& launches) const { return gpu_.median_us(launches) * 1e-3; }
  // All layers and the logits, with attention or without.
  void layers(bool attending);
  double rope_kv_ms(const StepOfEquals& step) const;
  double norms_ms(std::uint32_t num_tokens) const;
  double activation_ms(std::uint32_t num_tokens) const;
  double sampler_ms(std::uint32_t num_rows) const;

  Gpu gpu_;
  engine::LlamaShape shape_;
  engine::DecoderSpec spec_;
  const engine::ModelLimits& limits_;
  bool deterministic_;
  engine::CudaBackend backend_;
  engine::StepClock clock_;
  engine::Weights weights_;
  engine::KvCache kv_;
  engine::Decoder decoder_;
  engine::CudaForward forward_;
};

}  // namespace inferno::lab
