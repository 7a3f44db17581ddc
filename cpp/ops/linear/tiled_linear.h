// The matrix product by an instruction set's tiles: which tile meets which panel, and when.
#pragma once

#include "ops/linear/kernels/linear_tile.h"
#include "ops/linear/linear.h"

namespace inferno::ops {

// As linear. Throws std::invalid_argument where the workspace is smaller than
// tiled_workspace_bytes.
void tiled_linear(const OpContext& context, const LinearArgs& args, const LinearKernels& kernels);

// For all kernels there are.
std::size_t tiled_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns,
                                  std::uint32_t num_threads) noexcept;

}  // namespace inferno::ops
