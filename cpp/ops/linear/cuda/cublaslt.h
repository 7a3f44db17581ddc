// cuBLASLt, opened at run time so that a node without it still starts and says what it lacks; and
// the one kind of product that is asked of it.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

// Scales of rows, where both factors are codes of e4m3.
struct LtScales {
  const float* h = nullptr;       // [T], or null: the factors are elements
  const float* weight = nullptr;  // [N]
};

// y [T, N] = scale * (h · Wᵀ), or y += it.
struct LtProduct {
  const void* h = nullptr;       // [T, K] elements of `dtype`, or codes
  std::uint32_t num_tokens = 0;  // T
  Dtype dtype = Dtype::BF16;     // of h and y
  DeviceMatrix weight;           // [N, K]; of the same dtype, or codes: N and K multiples of 16
  LtScales scales{};
  void* y = nullptr;           // elements, or float
  std::uint32_t y_stride = 0;  // from one of y's rows to the next; 0: N
  bool float_y = false;
  bool add = false;
  float scale = 1;
};

// Not thread-safe.
class CublasLt {
 public:
  // Throws "other: …" if the library cannot be opened. `workspace`: workspace_bytes() of device
  // memory. Heuristics are asked for up to `max_tokens` rows when a matrix is first seen.
  CublasLt(void* workspace, std::uint32_t max_tokens);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  static std::size_t workspace_bytes();

  void multiply(const CudaOp& op, const LtProduct& product);

 private:
  struct Library;
  struct Descriptors;
  // Shapes for which one choice of algorithm serves: T (rounded up), N, K, y's stride, dtype, kind
  // of y, kind of the factors.
  using Key = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t, Dtype, bool,
                         bool, bool>;

  static Key key_of(const LtProduct& product, std::uint32_t num_tokens);
  cublasLtMatmulAlgo_t choose(const LtProduct& product, std::uint32_t num_tokens) const;
  const cublasLtMatmulAlgo_t& algorithm(const LtProduct& product);
  cublasStatus_t run(const CudaOp& op, const LtProduct& product,
                     const cublasLtMatmulAlgo_t& algorithm) const;

  std::unique_ptr<const Library> library_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  std::uint32_t max_tokens_;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
  // Of a T that cannot be multiplied as its neighbours are.
  std::map<Key, cublasLtMatmulAlgo_t> exceptions_;
};

}  // namespace inferno::ops::cuda
