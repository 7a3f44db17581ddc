// The one layout of weight matrices on a CPU, made once at load.
//
// A matrix [N, K] is cut into panels of kPanelRows rows. A panel holds its rows side by side, so
// that one vector holds the same columns of neighbouring rows, that is of neighbouring outputs:
//   f32, f16: [k][row]
//   bf16:     [k / 2][row][k % 2]     two columns together, as bf16 dot products want
//   fp8:      [k / 2][row][k % 2]     group by group
//   int8:     [k / 4][row][k % 4]     four columns together, as integer dot products want; code +
//   128 int4, mxfp4: [k / 4][row % 16][k % 4], row 16 and up in the upper half of each byte
// A group of quantized weights begins with its rows' scales, then, if it has them, its rows'
// offsets, floats. N is padded to whole panels and K to whole sets of columns, both with zeros. All
// instruction sets read the same layout; panels are contiguous, so a thread that owns neighbouring
// panels reads one stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"
#include "ops/linear/weight_format.h"

namespace inferno::ops {

inline constexpr std::uint32_t kPanelRows = 32;

// Dimensions of a matrix before padding.
struct WeightShape {
  std::uint32_t num_rows;     // N: outputs, or tokens of a vocabulary
  std::uint32_t num_columns;  // K: inputs
  WeightFormat format;        // as stored on the device

  constexpr Dtype dtype() const { return format.dtype(); }  // of what is not quantized
};

constexpr std::uint32_t num_panels(const WeightShape& shape) noexcept {
  return shape.num_rows / kPanelRows + (shape.num_rows % kPanelRows == 0 ? 0 : 1);
}

// How many of a panel's rows are the matrix's.
constexpr std::uint32_t panel_width(const WeightShape& shape, std::uint32_t panel) noexcept {
  return std::min(kPanelRows, shape.num_rows - panel * kPanelRows);
}

// A packed matrix; non-owning. `data` is aligned to kAlignment.
struct PackedWeights {
  const std::byte* data;
  WeightShape shape;
};

// Where things are in a panel.
struct PanelLayout {
  explicit PanelLayout(const WeightShape& shape) noexcept;

  std::size_t num_columns;   // K, padded
  std::size_t group;         // columns of a group; all of them where there is one
  std::size_t header_bytes;  // of a group, before its codes
  std::size_t column_bytes;  // of a column of the panel: 32 elements
  std::size_t num_groups;
  std::size_t panel_bytes;

  // Of a panel: where the group begins that column k is in.
  std::size_t group_at(std::size_t k) const noexcept {
    return k / group * (header_bytes + group * column_bytes);
  }
  // Of a panel: where column k would be, if its set of columns began there.
  std::size_t column_at(std::size_t k) const noexcept {
    return group_at(k) + header_bytes + k % group * column_bytes;
  }
};

// Rows of a checkpoint's matrix [num_rows, K], row-major; any alignment.
struct RowSource {
  // Elements, or codes: bytes, or of four bits two columns in one, the first in its lower half, and
  // each row begins with a byte of its own.
  const std::byte* data;
  WeightFormat format;
  std::uint32_t num_rows;
  const float* scales = nullptr;   // [num_rows, groups] of codes
  const float* offsets = nullptr;  // the same, where the format has them
};

// Bytes of a row of a source, without scales.
constexpr std::size_t source_row_bytes(const WeightFormat& format,
                                       std::uint32_t num_columns) noexcept {
  return (std::size_t{num_columns} * weight_bits(format.kind) + 7) / 8;
}

// Bytes of the packed matrix, padding included; a multiple of kAlignment.
std::size_t packed_bytes(const WeightShape& shape) noexcept;

// Index, in elements, of row n's column k in a packed matrix that is not quantized.
inline std::size_t packed_index(const WeightShape& shape, std::uint32_t row,
                                std::uint32_t column) noexcept {
  const std::size_t panel = row / kPanelRows;
  const std::size_t lane = row % kPanelRows;
  const std::size_t start = panel * kPanelRows * ((std::size_t{shape.num_columns} + 1) / 2 * 2);
  if (shape.dtype() != Dtype::BF16) return start + std::size_t{column} * kPanelRows + lane;
  return start + std::size_t{column / 2} * 2 * kPanelRows + lane * 2 + column % 2;
}

// Writes source rows as rows first_row and up of the matrix, the columns' padding included; with
// the last row also the rows' padding. Several tensors (q, k, v) can so become one matrix.
//   elements to elements: converted, rounding to nearest even
//   codes to the same format: as they are
//   codes to elements: dequantized
//   elements to codes: quantized (quantize.h)
// Throws std::invalid_argument if the rows do not fit, or for codes of another format.
void pack_rows(const OpContext& context, const WeightShape& shape, std::byte* packed,
               std::uint32_t first_row, const RowSource& source);

struct Columns {
  std::uint32_t begin;  // a multiple of 4
  std::uint32_t end;
};

// Columns of a row as float, also of a row of the last panel's padding: out [end - begin].
void unpack_columns(const PackedWeights& weights, std::uint32_t row, const Columns& columns,
                    float* out) noexcept;
// Row `row` as float: out [K].
void unpack_row(const PackedWeights& weights, std::uint32_t row, float* out) noexcept;

}  // namespace inferno::ops
