// Rows of codes in the panels of a packed matrix; the layout stands in packed_weights.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear/packed_weights.h"

namespace inferno::ops {

// All kPanelRows rows of a panel at once, as they are stored: row after row.
struct PanelRows {
  const std::byte* data;
  std::size_t row_bytes;
};
// Copies them, block by block in the nearest cache. False where only rows can be packed: where the
// last set of columns is not full.
bool copy_panel(const WeightShape& shape, const PanelLayout& layout, const PanelRows& rows,
                std::byte* panel) noexcept;

// Neighbouring columns that a panel keeps side by side for each of its rows.
constexpr std::size_t columns_together(WeightKind kind) noexcept {
  return kind == WeightKind::F32 || kind == WeightKind::F16 || kind == WeightKind::BF16 ||
                 kind == WeightKind::Fp8
             ? 2
             : 4;
}

// A row's codes, one to a byte, and what belongs to its groups. All null: a row of zeros.
struct CodedRow {
  const std::uint8_t* codes;  // [K]
  const float* scales;        // [groups]
  const float* offsets;       // [groups], or null where the format has none
};

// One of a panel's rows.
struct Lane {
  const WeightShape& shape;
  const PanelLayout& layout;
  std::byte* panel;
  std::uint32_t index;  // below kPanelRows
};

void pack_codes(const Lane& lane, const CodedRow& row) noexcept;
// Of pack_codes what comes before each group's codes.
void pack_scales(const Lane& lane, const CodedRow& row) noexcept;
// Columns begin to end - 1; begin is a multiple of 4. out [end - begin]
void unpack_codes(const Lane& lane, std::size_t begin, std::size_t end, float* out) noexcept;

// out [K]
void dequantize(const CodedRow& row, const WeightFormat& format, std::uint32_t num_columns,
                float* out) noexcept;

}  // namespace inferno::ops
