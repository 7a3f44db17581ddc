// The one layout of weight matrices on the device, made once at load.
//
// A matrix [N, K] is cut into panels of kPanelRows rows. A panel holds its rows side by side, so
// that one vector holds the same column of neighbouring rows, that is of neighbouring outputs:
//   f32, f16: [panel][k][row in panel]
//   bf16:     [panel][k / 2][row in panel][k % 2]   two columns together, as bf16 dot products want
// N is padded to whole panels and K to an even number, both with zeros. All instruction sets read
// the same layout; panels are contiguous, so a thread that owns neighbouring panels reads one
// stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/base/dtype.h"
#include "ops/base/op_context.h"

namespace inferno::ops {

inline constexpr std::uint32_t kPanelRows = 32;

// Dimensions of a matrix before padding.
struct WeightShape {
  std::uint32_t num_rows;     // N: outputs, or tokens of a vocabulary
  std::uint32_t num_columns;  // K: inputs
  Dtype dtype;                // as stored on the device
};

// A packed matrix; non-owning. `data` is aligned to kAlignment.
struct PackedWeights {
  const std::byte* data;
  WeightShape shape;
};

// Rows of a row-major checkpoint tensor [num_rows, K]; any alignment.
struct RowSource {
  const std::byte* data;
  Dtype dtype;
  std::uint32_t num_rows;
};

// Bytes of the packed matrix, padding included; a multiple of kAlignment.
std::size_t packed_bytes(const WeightShape& shape) noexcept;

// Index, in elements, of row n's column k in the packed matrix.
inline std::size_t packed_index(const WeightShape& shape, std::uint32_t row,
                                std::uint32_t column) noexcept {
  const std::size_t panel = row / kPanelRows;
  const std::size_t lane = row % kPanelRows;
  const std::size_t start = panel * kPanelRows * ((std::size_t{shape.num_columns} + 1) / 2 * 2);
  if (shape.dtype != Dtype::BF16) return start + std::size_t{column} * kPanelRows + lane;
  return start + std::size_t{column / 2} * 2 * kPanelRows + lane * 2 + column % 2;
}

// Converts source rows to shape.dtype (rounding to nearest even) and writes them as rows first_row
// and up, the columns' padding included; with the last row also the rows' padding. Several tensors
// (q, k, v) can so become one matrix. Throws std::invalid_argument if the rows do not fit.
void pack_rows(const OpContext& context, const WeightShape& shape, std::byte* packed,
               std::uint32_t first_row, const RowSource& source);

// Row `row` as float, for tests and tools: out [K].
void unpack_row(const PackedWeights& weights, std::uint32_t row, float* out) noexcept;

}  // namespace inferno::ops
