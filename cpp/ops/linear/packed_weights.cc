#include "ops/linear/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace inferno::ops {

namespace {

std::size_t padded_columns(const WeightShape& shape) noexcept {
  return (static_cast<std::size_t>(shape.num_columns) + 1) / 2 * 2;
}

std::size_t num_panels(const WeightShape& shape) noexcept {
  return (static_cast<std::size_t>(shape.num_rows) + kPanelRows - 1) / kPanelRows;
}

// Copies one row without conversion, `columns_together` neighbouring columns as one Element.
template <typename Element>
void copy_row(const WeightShape& shape, std::byte* packed, std::uint32_t row,
              const std::byte* source, std::uint32_t columns_together) {
  const std::size_t element_bytes = dtype_bytes(shape.dtype);
  std::byte* to = packed + packed_index(shape, row, 0) * element_bytes;
  const std::size_t step = kPanelRows * columns_together * element_bytes;
  for (std::uint32_t k = 0; k < shape.num_columns / columns_together; ++k) {
    std::memcpy(to, source, sizeof(Element));
    to += step;
    source += sizeof(Element);
  }
}

// A row as the checkpoint has it.
struct SourceRow {
  const std::byte* data;
  Dtype dtype;
};

void convert_row(const WeightShape& shape, std::byte* packed, std::uint32_t row, SourceRow source,
                 std::uint32_t first_column) {
  for (std::uint32_t k = first_column; k < shape.num_columns; ++k) {
    store_element(packed, shape.dtype, packed_index(shape, row, k),
                  load_element(source.data, source.dtype, k));
  }
}

void pack_row(const WeightShape& shape, std::byte* packed, std::uint32_t row,
              const std::byte* source, Dtype source_dtype) {
  if (source_dtype != shape.dtype) {
    convert_row(shape, packed, row, {source, source_dtype}, 0);
  } else if (source_dtype == Dtype::F32) {
    copy_row<std::uint32_t>(shape, packed, row, source, 1);
  } else if (source_dtype == Dtype::F16) {
    copy_row<std::uint16_t>(shape, packed, row, source, 1);
  } else {
    copy_row<std::uint32_t>(shape, packed, row, source, 2);
    convert_row(shape, packed, row, {source, source_dtype}, shape.num_columns / 2 * 2);
  }
  if (padded_columns(shape) > shape.num_columns) {
    store_element(packed, shape.dtype, packed_index(shape, row, shape.num_columns), 0.0F);
  }
}

void clear_row(const WeightShape& shape, std::byte* packed, std::uint32_t row) {
  for (std::uint32_t k = 0; k < padded_columns(shape); ++k) {
    store_element(packed, shape.dtype, packed_index(shape, row, k), 0.0F);
  }
}

}  // namespace

std::size_t packed_bytes(const WeightShape& shape) noexcept {
  return num_panels(shape) * kPanelRows * padded_columns(shape) * dtype_bytes(shape.dtype);
}

void pack_rows(const OpContext& context, const WeightShape& shape, std::byte* packed,
               std::uint32_t first_row, const RowSource& source) {
  if (first_row > shape.num_rows || source.num_rows > shape.num_rows - first_row) {
    throw std::invalid_argument("other: pack_rows: the rows do not fit into the matrix");
  }
  const std::size_t source_row_bytes = shape.num_columns * dtype_bytes(source.dtype);
  const std::uint32_t end_row = first_row + source.num_rows;
  // Whole panels per chunk, so that two threads never write the same cache line.
  const std::uint32_t first_panel = first_row / kPanelRows;
  const std::uint32_t end_panel = (end_row + kPanelRows - 1) / kPanelRows;
  context.threads.parallel_for(end_panel - first_panel, [&](std::uint32_t chunk, std::uint32_t) {
    const std::uint32_t panel_row = (first_panel + chunk) * kPanelRows;
    const std::uint32_t begin = std::max(panel_row, first_row);
    const std::uint32_t end = std::min(panel_row + kPanelRows, end_row);
    for (std::uint32_t row = begin; row < end; ++row) {
      pack_row(shape, packed, row, source.data + (row - first_row) * source_row_bytes,
               source.dtype);
    }
    if (end != shape.num_rows) return;
    for (std::uint32_t row = end; row < panel_row + kPanelRows; ++row) {
      clear_row(shape, packed, row);
    }
  });
}

void unpack_row(const PackedWeights& weights, std::uint32_t row, float* out) noexcept {
  for (std::uint32_t k = 0; k < weights.shape.num_columns; ++k) {
    out[k] = load_element(weights.data, weights.shape.dtype, packed_index(weights.shape, row, k));
  }
}

}  // namespace inferno::ops
