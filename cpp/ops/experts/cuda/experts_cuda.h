// The MLP of a mixture of experts on the GPU: experts.h, for elements of 16 bits with sums in
// float.
//
// Two ways. Few rows for each expert: the chosen experts' weights are streamed once, at the
// memory's pace; of up to kMaxDecodeTokens tokens the last product sums over experts by itself.
// Many rows, and batch-invariant any number: the tokens' rows are brought into the experts' order
// and multiplied by large tiles. Which one it is, and the form of every launch, depends on T and
// the shapes only, and no step waits for the host: what was routed where is known to the device
// alone. So a call can be captured into a graph and replayed with other tokens.
//
// Devices before compute capability 9.0, and H or I that are no multiples of 64, have plain
// kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ops/cuda/cuda_op.h"
#include "ops/experts/cuda/route_cuda.h"
#include "ops/experts/experts.h"
#include "ops/linear/cuda/linear_cuda.h"

namespace inferno::ops::cuda {

// The rows that go through the experts, and where they go.
struct ExpertsInput {
  const void* h = nullptr;       // [T, H] elements
  std::uint32_t num_tokens = 0;  // T, up to the max_tokens of the workspace
  // Deferred normalisation, as in LinearInput: null, or [T, norm_parts(H)] sums of squares. Only
  // for T up to kMaxFewRows, or batch-invariant.
  const float* square_sums = nullptr;
  float eps = 0;
  // [T, k] those of a token all different; kNoExpert adds nothing, and reads no weights.
  const std::uint32_t* expert_ids = nullptr;
  const float* weights = nullptr;  // [T, k]
};

// What the experts' sum is added to.
struct ExpertsResidual {
  float* x;  // [T, H]
  float scale = 1.0F;
  NextNorm next = {};
};

// One for each device context, for one form of experts. Not thread-safe.
class ExpertsCuda {
 public:
  // `workspace`: workspace_bytes(shape, max_tokens) of device memory. It is written and read within
  // a call only. Throws "other: …" for a shape that has no kernels: E up to kMaxExperts, k up to
  // kMaxExpertsPerToken, H and I multiples of 8, H up to kMaxHiddenSize.
  ExpertsCuda(const CudaOp& op, const ExpertsShape& shape, std::uint32_t max_tokens,
              void* workspace);
  ~ExpertsCuda();
  ExpertsCuda(const ExpertsCuda&) = delete;
  ExpertsCuda& operator=(const ExpertsCuda&) = delete;

  static std::size_t workspace_bytes(const ExpertsShape& shape, std::uint32_t max_tokens);

  // Same bits for a token whatever the other tokens and their number are. Off by default.
  void set_batch_invariant(bool on);

  // y [T, H] = the experts' sum. Weights of f16 or bf16, row-major, aligned to 16 bytes as is
  // expert_stride; h has elements of their dtype.
  void store(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights, float* y);

  // x += scale * the experts' sum. With next.weight also next.h and, if the answer is true,
  // next.square_sums, as LinearCuda::add leaves them.
  bool add(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
           const ExpertsResidual& to);
  // What `add` with a next.weight would answer.
  bool defers(std::uint32_t num_tokens, Dtype dtype) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace inferno::ops::cuda
