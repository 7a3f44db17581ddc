// Inputs of a product as codes of e4m3, each row by its own scale, for products with a row-major
// matrix of such codes (code_layout.h).
#pragma once

#include "ops/linear/cuda/linear_cuda.h"

namespace inferno::ops::cuda {

// What a row may be wide: a block keeps it in registers.
inline constexpr std::uint32_t kMaxCodedColumns = 65536;

struct QuantizeInputsArgs {
  LinearInput in;                 // its square_sums become part of the scales
  std::uint32_t num_columns = 0;  // K, a multiple of 8 up to kMaxCodedColumns
  // [T, spans * 128] codes, columns of a span in the order of the matrix's; zeros beyond K.
  std::uint8_t* codes = nullptr;
  float* scales = nullptr;  // [T] a number is its code times its row's scale
};

// The largest number of a row becomes 448, the largest code; the others are rounded to nearest
// even. A row's bits depend on this row only.
void quantize_inputs_cuda(const CudaOp& op, const QuantizeInputsArgs& args);

}  // namespace inferno::ops::cuda
