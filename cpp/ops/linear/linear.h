// Matrix product with packed weights: every linear layer and the logits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops {

struct LinearArgs {
  const float* x;          // [M, K]
  std::uint32_t num_rows;  // M: tokens
  PackedWeights weights;   // [N, K]
  const float* bias;       // [N], or null for none
  float* out;              // [M, N]
  bool accumulate;         // out += the product instead of out = the product
};

// out[m, n] = (accumulate ? out[m, n] : 0) + (bias ? bias[n] : 0) + sum over k of x[m, k] *
// weights[n, k].
//
// Order of sums: K is cut into blocks of a fixed length; inside a block the products are added one
// after the other in the order of k (bf16 dot instructions: pairs of k), starting from zero; the
// sums of the blocks are added in order to the starting value. All sums in float. This order and
// the rounding depend on K, the weights' dtype and the instruction set only: a row has the same
// bits for every M, at every place in the batch, and for every number of threads.
//
// x is rounded to bf16 first where the weights are bf16 and the hardware multiplies bf16
// (Avx512Bf16 and wider); elsewhere products are of floats.
void linear(const OpContext& context, const LinearArgs& args);

// Workspace for products of up to max_rows rows and max_columns (K) columns.
std::size_t linear_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns,
                                   std::uint32_t num_threads) noexcept;

}  // namespace inferno::ops
