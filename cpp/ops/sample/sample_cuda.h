// The sampler of sample.h on the GPU: the same logits and parameters give the same token, bit by
// bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/process_logits/process_logits.h"
#include "ops/sample/sample.h"

namespace inferno::ops::cuda {

struct SampleCudaArgs {
  float* logits = nullptr;  // [R, vocab_size]
  // [R, vocab_size] and [R], or null: rows whose rules change the logits are drawn from here.
  float* processed = nullptr;
  const LogitRules* rules = nullptr;
  const SampleParams* params = nullptr;  // [R] device memory
  const std::uint32_t* seats = nullptr;  // [R] where the token also goes, or kNoSeat (padding)
  std::uint32_t num_rows = 0;            // R
  std::uint32_t vocab_size = 0;
  // Host's knowledge, which spares work: some row has temperature above 0; some such row has top_k,
  // top_p or min_p on. A graph of greedy rows is captured with both false.
  bool any_random = false;
  bool any_filter = false;
  void* workspace = nullptr;   // sample_cuda_workspace_bytes, zeroed once before the first call
  Sampled* sampled = nullptr;  // [R] status and token
  std::uint32_t* sampled_ids = nullptr;  // [max_batch_size] by seat; written where status is kOk
  Kept* kept = nullptr;  // [R] what was drawn from, where status is kOk; or null: not wanted
};

void sample_cuda(const CudaOp& op, const SampleCudaArgs& args);

std::size_t sample_cuda_workspace_bytes(std::uint32_t max_rows, std::uint32_t vocab_size);

}  // namespace inferno::ops::cuda
