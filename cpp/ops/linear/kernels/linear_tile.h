// The inner products of linear, as each instruction set offers them: a few rows of x against one
// panel of weights. Plain data: the files that are compiled for one instruction set include this
// and call nothing that another file could share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear/packed_weights.h"

namespace inferno::ops {

inline constexpr std::uint32_t kMaxTileRows = 32;
// Neighbouring values of x that share a scale where x is multiplied as integers; fewer where the
// weights' groups are narrower.
inline constexpr std::uint32_t kSpanColumns = 128;

// One block of columns of one panel and one tile of R rows.
struct LinearTile {
  const void* x;              // packed by pack_rows_of_x, at the block's first column
  const std::byte* w;         // the panel, at the block's first column
  std::uint32_t num_columns;  // of the block, padding included
  float* out;                 // [R, kPanelRows] += the block's sums
  // Cache lines to fetch while at it: these two, and of every following set of columns the ones
  // that lie as much further as the set does. Need not be readable.
  const std::byte* prefetch[2];

  // Of quantized weights: the header of the block's first group, [kPanelRows] scales, then offsets
  // where the format has them; how many floats further the next group's is, and how many bytes
  // lie in w between the codes of two groups.
  const float* scales;
  std::size_t scales_step;
  std::size_t gap;
  std::uint32_t group;  // columns
  bool offsets;
  // Where x is multiplied as integers: [spans][2][R], of each span from the block's first on the
  // rows' scales, then the sums of their values.
  const float* spans;
  std::uint32_t span;  // columns of one
};

using TileKernel = void (*)(const LinearTile& tile);

// Rows of x that become a tile.
struct TileRows {
  const float* x;  // [num_rows, num_columns]
  std::uint32_t num_columns;
  std::uint32_t num_rows;  // R
  std::uint32_t span;      // of integers
};

// What an instruction set does for one kind of weights.
struct LinearKernels {
  std::uint32_t max_rows;       // of a tile, at most kMaxTileRows
  std::uint32_t block_columns;  // K is summed in blocks of this length
  std::size_t x_bytes;          // of a packed element of x
  bool integers;                // x is multiplied as integers
  // Tiles of R rows, at index R; index 0 is unused.
  TileKernel tiles[kMaxTileRows + 1];
  // Writes the rows side by side, columns padded with zeros as the weights' are: float [k][row],
  // bf16 [k / 2][row][k % 2], or bytes [k / 4][row][k % 4] and after them floats [spans][2][row].
  // With x_columns (c): bf16 or bytes [k / c][row][k % c].
  void (*pack_rows_of_x)(const TileRows& rows, void* packed);
  // Null, or what the tiles read in place of the panel: a block's codes as bf16 or bytes, without
  // headers between.
  void (*widen)(const LinearTile& block, std::byte* out);
  std::uint32_t x_columns = 1;  // packed rows are padded with zeros to a multiple of it
  // Null, or what a thread calls before tiles of at most max_rows rows and after the last of them.
  void (*begin)(std::uint32_t max_rows) = nullptr;
  void (*end)() = nullptr;
};

const LinearKernels& linear_kernels_avx2(WeightKind kind) noexcept;
const LinearKernels& linear_kernels_avx512(WeightKind kind) noexcept;
// Of Int8, Int4 and Mxfp4.
const LinearKernels& integer_kernels_avx2(WeightKind kind) noexcept;
// Of Isa::AvxVnni, by each of the instruction's encodings (has_vex_vnni), to the same bits.
const LinearKernels& integer_kernels_avxvnni(WeightKind kind) noexcept;
const LinearKernels& integer_kernels_avx512vnni(WeightKind kind) noexcept;
const LinearKernels& integer_kernels_avx512(WeightKind kind) noexcept;
// Null where tiles do not pay or do not fit: no bf16 or codes, or groups that are no multiple
// of 32.
const LinearKernels* linear_kernels_amx(const WeightFormat& format) noexcept;
const LinearKernels* integer_kernels_amx(const WeightFormat& format) noexcept;

}  // namespace inferno::ops
