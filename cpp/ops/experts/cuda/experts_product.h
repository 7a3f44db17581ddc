// The steps of a call of ExpertsCuda, as it hands them to kernels. A pair is a token and one of its
// choices: token * k + choice.
#pragma once

#include "ops/cuda/cuda_op.h"
#include "ops/cuda/tensor_map.h"
#include "ops/experts/cuda/experts_cuda.h"

namespace inferno::ops::cuda {

// Who goes where. P = T * k pairs.
struct PairRouting {
  const std::uint32_t* expert_ids = nullptr;  // [P]
  std::uint32_t num_pairs = 0;                // P
  std::uint32_t num_experts = 0;              // E
  std::uint32_t experts_per_token = 0;        // k
};

// The pairs sorted by expert, in device memory.
struct SortedPairs {
  std::uint32_t* starts = nullptr;     // [E + 1] where each expert's begin
  std::uint32_t* order = nullptr;      // [P] pairs
  std::uint32_t* positions = nullptr;  // [P] of a pair in `order`
};

void sort_pairs_cuda(const CudaOp& op, const PairRouting& routing, const SortedPairs& sorted);

// Up to so many pairs every block of a product sorts them by itself, and no kernel before it.
inline constexpr std::uint32_t kMaxBlockPairs = 512;

// A product of every pair's row with its expert's matrix: outputs, or gated ones.
struct ExpertsProduct {
  PairRouting routing;
  SortedPairs sorted;       // `order` null: blocks sort by themselves
  bool routed = false;      // the routing was there before the kernel before this one
  const void* x = nullptr;  // [T, K] elements where rows are tokens', else [P, K]
  bool token_rows = false;
  ExpertMatrix weight;                 // [N, K] each
  bool gate = false;                   // N = 2 I: out has the activation of gate and up
  Activation activation;               // of gate
  const float* square_sums = nullptr;  // of tokens' rows: [T, norm_parts(K)], as in LinearInput
  std::uint32_t num_square_sums = 0;   // norm_parts(K)
  float eps = 0;
  // Null, or [P] what outputs are multiplied by before they are rounded. Only where blocks sort.
  const float* pair_weights = nullptr;
  void* out = nullptr;  // [P, N or I] elements

  std::uint32_t num_outputs() const {
    return gate ? weight.shape.num_rows / 2 : weight.shape.num_rows;
  }
};

// The matrices as the copy engine knows them.
inline MatrixStack stack_of(const ExpertMatrix& matrix, const PairRouting& routing) {
  const WeightShape& shape = matrix.shape;
  return {{matrix.data, shape.num_rows, shape.num_columns, shape.dtype()},
          routing.num_experts,
          matrix.expert_stride};
}

// Few rows for each expert, for compute capability 9.0. Rows of x and out are pairs'. A row's bits
// depend on itself only.
class ExpertsStreamKernel {
 public:
  explicit ExpertsStreamKernel(const CudaOp& op);
  // Whether this build has machine code of it for the device.
  bool available() const { return available_; }
  // Whether it multiplies matrices of such shapes.
  static bool takes(const WeightShape& shape);
  void operator()(const CudaOp& op, const ExpertsProduct& product) const;

 private:
  bool available_;
};

// Many rows for each expert, for compute capability 9.0. Rows of x are tokens' where it gates, else
// sorted ones as those of out; `sorted` is there.
class ExpertsTilesKernel {
 public:
  explicit ExpertsTilesKernel(const CudaOp& op);
  bool available() const { return available_; }
  void operator()(const CudaOp& op, const ExpertsProduct& product) const;

 private:
  bool available_;
};

// Most tokens of a step whose outputs a product sums by itself.
inline constexpr std::uint32_t kMaxDecodeTokens = 32;

// The product with down of a few tokens, and the sum over their experts, in one.
struct ExpertsDecode {
  PairRouting routing;             // up to kMaxBlockPairs pairs of up to kMaxDecodeTokens tokens
  const float* weights = nullptr;  // [P]
  const void* gated = nullptr;     // [P, I] elements, already multiplied by the pair's weight
  ExpertMatrix down;               // [H, I] each
  float scale = 1;
  bool add = false;    // x += scale * sum; else x = sum
  float* x = nullptr;  // [T, H]
  NextNorm next;       // deferred; H a multiple of 16 if there is any
};

class ExpertsDecodeKernel {
 public:
  explicit ExpertsDecodeKernel(const CudaOp& op);
  bool available() const { return available_; }
  void operator()(const CudaOp& op, const ExpertsDecode& product) const;

 private:
  bool available_;
};

// Plain loads and no tensor cores, for the devices before and for odd shapes.
void experts_plain(const CudaOp& op, const ExpertsProduct& product);

// What becomes of the pairs' outputs.
struct ExpertsSum {
  PairRouting routing;
  const float* weights = nullptr;            // [P]
  const void* outputs = nullptr;             // [P, H] elements
  const std::uint32_t* positions = nullptr;  // [P] rows of outputs, or null: a pair's own
  std::uint32_t num_tokens = 0;
  std::uint32_t hidden_size = 0;
  Dtype dtype = Dtype::BF16;
  float scale = 1;
  bool add = false;  // x += scale * sum; else x = sum
  float* x = nullptr;
  NextNorm next;  // h only
};

// x and h = rms_norm(x) of every token in one launch.
void sum_experts_cuda(const CudaOp& op, const ExpertsSum& sum);

}  // namespace inferno::ops::cuda
