// Tensor maps: what the copy engine knows of a matrix whose boxes it brings to shared memory.
#pragma once

#include <cuda.h>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

// Boxes are 64 columns of 16 bits wide, a row of a box being the 128 bytes of the swizzle.
inline constexpr std::uint32_t kBoxColumns = 64;

// The map for boxes of `box_rows` rows; outside of the matrix they are zero. A function of the
// arguments only: a map says where the matrix is, not what it holds.
CUtensorMap box_map(const DeviceMatrix& matrix, std::uint32_t box_rows);

// The map for `num_boxes` such boxes side by side in one copy, one after the other in shared
// memory. The matrix has a multiple of kBoxColumns columns.
CUtensorMap boxes_map(const DeviceMatrix& matrix, std::uint32_t box_rows, std::uint32_t num_boxes);

// The map for boxes that have rows of the matrix's upper and lower half by turns, kPairRows of
// each: `box_rows` together, a multiple of 2 * kPairRows, as is the number of the matrix's rows.
inline constexpr std::uint32_t kPairRows = 8;
CUtensorMap paired_map(const DeviceMatrix& matrix, std::uint32_t box_rows);

// Rows of `num_runs` runs of neighbouring bytes, one after the other.
struct RunGrid {
  const std::byte* data = nullptr;  // aligned to 16 bytes
  std::size_t run_bytes = 0;        // a multiple of 16 up to 2,048
  std::uint32_t num_runs = 0;       // of a row
  std::uint32_t num_rows = 0;
};
// The map for boxes of the same run of `box_rows` rows, without a swizzle: at (run, row) by
// copy_boxes. Paired, rows of the upper and the lower half by turns, each of `box_rows` / 2: at
// (run, 0, row) by copy_stack_boxes. Beyond the last row they are zero.
CUtensorMap runs_map(const RunGrid& grid, std::uint32_t box_rows, bool paired);

// Matrices of one shape, `stride_bytes` (a multiple of 16) from one to the next.
struct MatrixStack {
  DeviceMatrix first;
  std::uint32_t num_matrices = 0;
  std::size_t stride_bytes = 0;
};
// The map for boxes_map's boxes of each of these. Beyond a matrix's rows they are zero, too.
CUtensorMap stack_map(const MatrixStack& stack, std::uint32_t box_rows, std::uint32_t num_boxes);

}  // namespace inferno::ops::cuda
