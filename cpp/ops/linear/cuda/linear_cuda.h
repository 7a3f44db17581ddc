// Products with a weight matrix on the GPU: y = h · Wᵀ, with what surrounds them in a decoder layer
// fused where that saves memory traffic or launches.
//
// Few rows (up to kMaxFewRows): own kernels, which stream W once at the memory's pace through the
// tensor copy engine into shared memory and multiply on the tensor cores. More rows: cuBLASLt and
// small kernels around it. Both read the one row-major copy of W.
//
// A quantized W (code_layout.h) has kernels of its own for few rows: where its codes are whole
// numbers, inputs become bytes, each 128 columns with a scale; where they are e4m3 with a scale for
// each row, an input becomes two such codes; others become elements in registers.
// Of up to kMaxTiledRows rows codes become elements in registers, too, once for all rows of a tile.
// For more rows, a slice of W's after the other becomes elements in the workspace, which cuBLASLt
// multiplies; of e4m3 with a scale for each row, inputs become such codes instead. Only on compute
// capability 9.0.
//
// Deferred normalisation: RMSNorm scales a whole row by one number, so h = x * norm_weight can be
// multiplied first, and the product scaled by 1 / sqrt(mean(x²) + eps) at the end. The kernel that
// makes x leaves partial sums of squares beside it; no kernel of its own stands between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ops/cuda/cuda_op.h"
#include "ops/glu/activation.h"

namespace inferno::ops::cuda {

// Where the own kernels are faster than cuBLASLt with what it needs around it, on an H200 and for
// models of 1 to 8 billion parameters.
inline constexpr std::uint32_t kMaxFewRows = 64;

// Of a quantized W, up to so many rows are faster with inputs as bytes, and up to so many by an own
// kernel instead of cuBLASLt with elements made of W's codes.
inline constexpr std::uint32_t kMaxFewCodeRows = 32;
inline constexpr std::uint32_t kMaxTiledRows = 512;

// Of a W of e4m3 with a scale for each row, a multiple of 16 of them, more rows than this are
// faster with inputs as such codes, too. (Whole steps of an 8B and a 7B on an H200.)
inline constexpr std::uint32_t kMaxElementRows = 64;

// The rows that a product reads.
struct LinearInput {
  const void* h = nullptr;       // [T, K] elements of dtype
  std::uint32_t num_tokens = 0;  // T
  // Null: h is taken as it is. Else [T, norm_parts(K)] sums of squares, and row t of the product is
  // scaled by 1 / sqrt(sum(sums[t, :]) / K + eps). Only for T up to kMaxFewRows, or as codes.
  const float* square_sums = nullptr;
  float eps = 0;
  Dtype dtype = Dtype::BF16;  // of h, of what a product leaves in 16 bits, of a W not quantized
};

// What `add` leaves for the next product, besides x.
struct NextNorm {
  const float* weight = nullptr;  // [N], or null: nothing is left
  float eps = 0;
  void* h = nullptr;             // [T, N] elements
  float* square_sums = nullptr;  // [T, norm_parts(N)]
};

// Where `add` adds.
struct Residual {
  float* x = nullptr;  // [T, N] in place
  float scale = 1;     // of what is added
  NextNorm next{};
};

// Where `gate` leaves its results.
struct Gated {
  Activation activation{};
  void* scratch = nullptr;  // [T, N] elements
  void* out = nullptr;      // [T, N / 2] elements
};

// One for each device context; it owns cuBLASLt's handle, its workspace's address and what was
// found out for each shape (tensor maps, heuristics). Not thread-safe.
class LinearCuda {
 public:
  // `workspace`: workspace_bytes(quantized) of device memory, for this object alone. cuBLASLt's
  // heuristics are asked for all T up to `max_tokens` when a matrix is first seen, later ones one
  // by one. Throws "other: …" if cuBLASLt cannot be opened.
  LinearCuda(const CudaOp& op, void* workspace, std::uint32_t max_tokens = 0);
  ~LinearCuda();
  LinearCuda(const LinearCuda&) = delete;
  LinearCuda& operator=(const LinearCuda&) = delete;

  // quantized: for quantized matrices, too.
  static std::size_t workspace_bytes(bool quantized);

  // Same bits for a row whatever the other rows and their number are: always the few-rows kernel,
  // over parts of the batch. Off by default.
  void set_batch_invariant(bool on);

  // out [T, N] = h · Wᵀ + bias, elements of h's dtype. bias [N] float or null.
  void store(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight, const float* bias,
             void* out);

  // The same in float: logits.
  void store_f32(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight,
                 const float* bias, float* out);

  // x += scale * (h · Wᵀ + bias). With next.weight also next.h and, if `defers`,
  // next.square_sums: then next.h = x * weight, to be used with the sums; else next.h is normalised
  // already and the sums are not to be used. Answers whether sums were left.
  bool add(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight, const float* bias,
           const Residual& residual);

  // Whether `add` of so many rows leaves the next norm to the next product.
  bool defers(std::uint32_t num_tokens, Dtype dtype, const DeviceMatrix& weight) const;

  // Whether the kernel behind a product of so many rows may begin long before the product ends: it
  // may not behind the one for small matrices, nor behind cuBLASLt's.
  bool lets_next_start(const LinearInput& in, const DeviceMatrix& weight) const;

  // gated.out = activation(gate, up), of gate = h · W[0, N/2)ᵀ and up = h · W[N/2, N)ᵀ, each with
  // its bias.
  void gate(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight, const float* bias,
            const Gated& gated);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Partial sums of squares of a row of N elements: one for each 16.
constexpr std::uint32_t norm_parts(std::uint32_t num_columns) { return (num_columns + 15) / 16; }

}  // namespace inferno::ops::cuda
