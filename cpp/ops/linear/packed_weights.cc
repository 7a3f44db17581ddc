#include "ops/linear/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ops/linear/packed_codes.h"
#include "ops/linear/source_rows.h"

namespace inferno::ops {

namespace {

// ---- Elements. ----

// Copies one row without conversion, `together` neighbouring columns as one Element.
template <typename Element>
void copy_row(const WeightShape& shape, std::byte* packed, std::uint32_t row,
              const std::byte* source, std::uint32_t together) {
  const std::size_t element_bytes = dtype_bytes(shape.dtype());
  std::byte* to = packed + packed_index(shape, row, 0) * element_bytes;
  const std::size_t step = kPanelRows * together * element_bytes;
  for (std::uint32_t k = 0; k < shape.num_columns / together; ++k) {
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
    store_element(packed, shape.dtype(), packed_index(shape, row, k),
                  load_element(source.data, source.dtype, k));
  }
}

void pack_elements(const WeightShape& shape, std::byte* packed, std::uint32_t row,
                   SourceRow source) {
  const Dtype dtype = shape.dtype();
  if (source.dtype != dtype) {
    convert_row(shape, packed, row, source, 0);
  } else if (dtype == Dtype::F32) {
    copy_row<std::uint32_t>(shape, packed, row, source.data, 1);
  } else if (dtype == Dtype::F16) {
    copy_row<std::uint16_t>(shape, packed, row, source.data, 1);
  } else {
    copy_row<std::uint32_t>(shape, packed, row, source.data, 2);
    convert_row(shape, packed, row, source, shape.num_columns / 2 * 2);
  }
  if (shape.num_columns % 2 != 0) {
    store_element(packed, dtype, packed_index(shape, row, shape.num_columns), 0.0F);
  }
}

// ---- Rows of any source. ----

// One thread's way from a source's rows to a panel's.
class RowPacker {
 public:
  RowPacker(const WeightShape& shape, std::byte* packed, const RowSource& source)
      : shape_(shape),
        packed_(packed),
        source_(source),
        layout_(shape),
        rows_(source, shape.num_columns, shape.format) {}

  // The source's row `index` as the matrix's row `row`.
  void pack(std::uint32_t row, std::size_t index) {
    if (shape_.format.is_quantized()) {
      pack_codes(lane(row), rows_.codes(index));
    } else if (source_.format.is_quantized()) {
      const auto* values = reinterpret_cast<const std::byte*>(rows_.values(index));
      pack_elements(shape_, packed_, row, {values, Dtype::F32});
    } else {
      pack_elements(shape_, packed_, row, {rows_.bytes(index), source_.format.dtype()});
    }
  }

  // As many of the source's rows, from `index` on, as fill the panel that begins with this row;
  // false where they have to be packed one by one.
  bool pack_panel(std::uint32_t row, std::size_t index) {
    if (source_.format != shape_.format) return false;
    const std::size_t row_bytes = source_row_bytes(source_.format, shape_.num_columns);
    std::byte* const panel = packed_ + row / kPanelRows * layout_.panel_bytes;
    if (!copy_panel(shape_, layout_, {rows_.bytes(index), row_bytes}, panel)) return false;
    if (!shape_.format.is_quantized()) return true;
    for (std::uint32_t i = 0; i < kPanelRows; ++i) {
      pack_scales(lane(row + i), rows_.scales(index + i));
    }
    return true;
  }

  // A row of the padding.
  void clear(std::uint32_t row) {
    if (shape_.format.is_quantized()) {
      pack_codes(lane(row), {nullptr, nullptr, nullptr});
      return;
    }
    const std::uint32_t padded = (shape_.num_columns + 1) / 2 * 2;
    for (std::uint32_t k = 0; k < padded; ++k) {
      store_element(packed_, shape_.dtype(), packed_index(shape_, row, k), 0.0F);
    }
  }

 private:
  Lane lane(std::uint32_t row) const {
    return {shape_, layout_, packed_ + row / kPanelRows * layout_.panel_bytes, row % kPanelRows};
  }

  const WeightShape& shape_;
  std::byte* packed_;
  const RowSource& source_;
  const PanelLayout layout_;
  SourceRows rows_;
};

void check_source(const WeightShape& shape, std::uint32_t first_row, const RowSource& source) {
  if (first_row > shape.num_rows || source.num_rows > shape.num_rows - first_row) {
    throw std::invalid_argument("other: pack_rows: the rows do not fit into the matrix");
  }
  if (source.format.is_quantized() && shape.format.is_quantized() &&
      source.format != shape.format) {
    throw std::invalid_argument(std::string("other: pack_rows: rows of ") +
                                weight_kind_name(source.format.kind) + " for a matrix of " +
                                weight_kind_name(shape.format.kind) +
                                " with other groups or offsets");
  }
}

}  // namespace

PanelLayout::PanelLayout(const WeightShape& shape) noexcept {
  const WeightFormat& format = shape.format;
  const std::size_t together = columns_together(format.kind);
  num_columns = (std::size_t{shape.num_columns} + together - 1) / together * together;
  group = format.group == 0 ? std::max<std::size_t>(num_columns, together) : format.group;
  header_bytes = !format.is_quantized() ? 0 : kPanelRows * sizeof(float) * (format.offsets ? 2 : 1);
  column_bytes = kPanelRows * weight_bits(format.kind) / 8;
  num_groups = ops::num_groups(format, shape.num_columns);
  panel_bytes = num_groups * header_bytes + num_columns * column_bytes;
}

std::size_t packed_bytes(const WeightShape& shape) noexcept {
  return num_panels(shape) * PanelLayout(shape).panel_bytes;
}

void pack_rows(const OpContext& context, const WeightShape& shape, std::byte* packed,
               std::uint32_t first_row, const RowSource& source) {
  check_source(shape, first_row, source);
  const std::uint32_t end_row = first_row + source.num_rows;
  // Whole panels per chunk, so that two threads never write the same cache line.
  const std::uint32_t first_panel = first_row / kPanelRows;
  const std::uint32_t end_panel = (end_row + kPanelRows - 1) / kPanelRows;
  context.threads.parallel_for(end_panel - first_panel, [&](std::uint32_t chunk, std::uint32_t) {
    const std::uint32_t panel_row = (first_panel + chunk) * kPanelRows;
    const std::uint32_t begin = std::max(panel_row, first_row);
    const std::uint32_t end = std::min(panel_row + kPanelRows, end_row);
    RowPacker packer(shape, packed, source);
    if (end - begin == kPanelRows && packer.pack_panel(begin, begin - first_row)) return;
    for (std::uint32_t row = begin; row < end; ++row) packer.pack(row, row - first_row);
    if (end != shape.num_rows) return;
    for (std::uint32_t row = end; row < panel_row + kPanelRows; ++row) packer.clear(row);
  });
}

void unpack_columns(const PackedWeights& weights, std::uint32_t row, const Columns& columns,
                    float* out) noexcept {
  const WeightShape& shape = weights.shape;
  if (shape.format.is_quantized()) {
    const PanelLayout layout(shape);
    const std::byte* panel = weights.data + row / kPanelRows * layout.panel_bytes;
    unpack_codes({shape, layout, const_cast<std::byte*>(panel), row % kPanelRows}, columns.begin,
                 columns.end, out);
    return;
  }
  for (std::uint32_t k = columns.begin; k < columns.end; ++k) {
    out[k - columns.begin] = load_element(weights.data, shape.dtype(), packed_index(shape, row, k));
  }
}

void unpack_row(const PackedWeights& weights, std::uint32_t row, float* out) noexcept {
  unpack_columns(weights, row, {0, weights.shape.num_columns}, out);
}

}  // namespace inferno::ops
