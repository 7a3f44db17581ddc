// process_logits.h on the GPU: the same rules and state give the same logits, bit by bit.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/process_logits/process_logits.h"
#include "ops/sample/sample.h"

namespace inferno::ops::cuda {

struct ProcessLogitsCudaArgs {
  float* logits = nullptr;            // [R, V]
  const LogitRules* rules = nullptr;  // [R]
  SeatStates states;
  const std::uint32_t* masks = nullptr;  // [*, mask_words(V)] of the step
  std::uint32_t num_rows = 0;            // R
  float* out = nullptr;                  // [R, V]; rows without rules are not written
};

void process_logits_cuda(const CudaOp& op, const ProcessLogitsCudaArgs& args);

struct NoteSampledCudaArgs {
  const LogitRules* rules = nullptr;  // [R] no seat twice
  const Sampled* sampled = nullptr;   // [R] a row that was not sampled changes nothing
  SeatStates states;
  std::uint32_t num_rows = 0;  // R
};

void note_sampled_cuda(const CudaOp& op, const NoteSampledCudaArgs& args);

struct CountTokensCudaArgs {
  const std::uint32_t* token_ids = nullptr;  // [N] on the device, or page-locked host memory
  std::uint32_t num_tokens = 0;              // N
  std::uint32_t prompt_len = 0;
  std::uint32_t vocab_size = 0;     // V
  std::uint16_t* counts = nullptr;  // [counts_stride(V)]
};

void count_tokens_cuda(const CudaOp& op, const CountTokensCudaArgs& args);

}  // namespace inferno::ops::cuda
