// score.h on the GPU: the same logits give the same scores, bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/process_logits/process_logits.h"
#include "ops/sample/sample.h"
#include "ops/sample/sampler.h"
#include "ops/score/score.h"

namespace inferno::ops::cuda {

struct ScoreCudaArgs {
  float* logits = nullptr;            // [R, vocab_size]
  const RowLogprobs* rows = nullptr;  // [R] rows that want nothing are not written
  const Sampled* targets = nullptr;   // [R] the token that is asked for, where its status is kOk
  // Of sample_cuda, for rows that want what was drawn from; else null.
  float* processed = nullptr;         // [R, vocab_size]
  const LogitRules* rules = nullptr;  // [R]
  const Kept* kept = nullptr;         // [R] read where the target's status is kOk
  std::uint32_t num_rows = 0;         // R
  std::uint32_t vocab_size = 0;
  void* workspace = nullptr;   // score_cuda_workspace_bytes, zeroed once before the first call
  RowScore* scores = nullptr;  // [R]
  TokenLogit* top = nullptr;   // [R, kMaxTop] scores[r].num_top of each row are written
};

void score_cuda(const CudaOp& op, const ScoreCudaArgs& args);

std::size_t score_cuda_workspace_bytes(std::uint32_t max_rows, std::uint32_t vocab_size);

}  // namespace inferno::ops::cuda
