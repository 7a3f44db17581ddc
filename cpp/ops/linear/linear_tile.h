// The inner products of linear, as each instruction set offers them: a few rows of x against one
// panel of weights. Plain data: the files that are compiled for one instruction set include this
// and call nothing that another file could share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear/packed_weights.h"

namespace inferno::ops {

inline constexpr std::uint32_t kMaxTileRows = 12;

// One block of columns of one panel and one tile of R rows.
struct LinearTile {
  const void* x;              // packed by pack_rows_of_x, at the block's first column
  const std::byte* w;         // the panel, at the block's first column
  std::uint32_t num_columns;  // of the block, even (padding included)
  float* out;                 // [R, kPanelRows] += the block's sums; rows are out_stride apart
  std::size_t out_stride;
  // Cache lines to fetch while at it: these two, and of every following pair of columns the ones
  // that lie as much further as the pair does. Need not be readable.
  const std::byte* prefetch[2];
};

using TileKernel = void (*)(const LinearTile& tile);

// What an instruction set does for one dtype of weights.
struct LinearKernels {
  std::uint32_t max_rows;       // of a tile, at most kMaxTileRows
  std::uint32_t block_columns;  // K is summed in blocks of this length; even
  std::size_t x_bytes;          // of a packed element of x
  // Tiles of R rows, at index R; index 0 is unused.
  TileKernel tiles[kMaxTileRows + 1];
  // Writes num_rows rows of x [num_rows, num_columns] side by side, columns padded to an even
  // number with zeros: float [k][row], or bf16 [k / 2][row][k % 2].
  void (*pack_rows_of_x)(const float* x, std::uint32_t num_columns, std::uint32_t num_rows,
                         void* packed);
};

const LinearKernels& linear_kernels_avx2(Dtype dtype) noexcept;
const LinearKernels& linear_kernels_avx512(Dtype dtype) noexcept;

}  // namespace inferno::ops
