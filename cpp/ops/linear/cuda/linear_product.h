// One product of few rows, as LinearCuda hands it to a kernel.
#pragma once

#include <array>

#include "ops/linear/cuda/linear_cuda.h"

namespace inferno::ops::cuda {

// Most rows that a kernel for few rows takes at once.
inline constexpr std::uint32_t kCallRows = 64;
static_assert(kMaxFewRows <= kCallRows);

// What becomes of a row of h · Wᵀ after scale and bias.
enum class Epilogue : std::uint32_t {
  Store,       // elements
  StoreFloat,  // float
  Add,         // x += it, and what the next norm needs
  Gate,        // activation(gate, up)
};

struct FewRowsProduct {
  LinearInput in;  // at most kCallRows rows
  DeviceMatrix weight;
  Epilogue epilogue = Epilogue::Store;
  const float* bias = nullptr;
  void* out = nullptr;      // of Add: x
  float scale = 1;          // of Add: of the product and its bias
  NextNorm next{};          // of Add
  Activation activation{};  // of Gate
};

// Outputs of a partial sum of squares.
inline constexpr std::uint32_t kNormPartRows = 16;

// Outputs of a tile of the few-rows kernel.
inline constexpr std::uint32_t kTileRows = 128;

// The few-rows kernel for compute capability 9.0.
class FewRowsKernel {
 public:
  explicit FewRowsKernel(const CudaOp& op);

  // Whether this build has machine code of it for the device.
  bool available() const { return num_clusters_ > 0; }

  void operator()(const CudaOp& op, const FewRowsProduct& product) const;

 private:
  std::uint32_t num_clusters_ = 0;  // that the device runs at once
};

// The same of quantized matrices.
class CodeRowsKernel {
 public:
  explicit CodeRowsKernel(const CudaOp& op);
  bool available() const { return num_clusters_ > 0; }

  // Of h; 0 where the matrix has too many columns.
  static std::uint32_t rows_at_once(const DeviceMatrix& weight, Dtype dtype);
  void operator()(const CudaOp& op, const FewRowsProduct& product) const;

 private:
  std::uint32_t num_clusters_ = 0;
};

// The kernel of quantized matrices for more rows.
class CodeTilesKernel {
 public:
  explicit CodeTilesKernel(const CudaOp& op);
  // Whether it multiplies such matrices on this device.
  bool takes(const WeightFormat& format) const;
  // Any number of rows.
  void operator()(const CudaOp& op, const FewRowsProduct& product) const;

 private:
  static constexpr std::uint32_t kMaxCluster = 8;
  std::array<std::uint32_t, kMaxCluster + 1> clusters_{};  // of so many blocks, at once
};

inline constexpr std::uint32_t kMaxDecodeRows = 8;

// The kernel for up to kMaxDecodeRows rows and small matrices, for compute capability 9.0.
class DecodeRowsKernel {
 public:
  explicit DecodeRowsKernel(const CudaOp& op);
  // Whether it computes this product on this device.
  bool takes(const FewRowsProduct& product) const;
  void operator()(const CudaOp& op, const FewRowsProduct& product) const;

 private:
  bool available_;
};

// Plain loads and no tensor cores, for the devices before. Leaves nothing for the next norm.
void few_rows_plain(const CudaOp& op, const FewRowsProduct& product);

}  // namespace inferno::ops::cuda
