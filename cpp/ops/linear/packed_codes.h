// Rows of codes in the panels of a packed matrix; the layout stands in packed_weights.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear/packed_weights.h"

namespace inferno::ops {

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
// Columns begin to end - 1; begin is a multiple of 4. out [end - begin]
void unpack_codes(const Lane& lane, std::size_t begin, std::size_t end, float* out) noexcept;

// out [K]
void dequantize(const CodedRow& row, const WeightFormat& format, std::uint32_t num_columns,
                float* out) noexcept;

}  // namespace inferno::ops
