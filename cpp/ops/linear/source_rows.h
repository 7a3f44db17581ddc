// Rows of a checkpoint's matrix on their way into a device's layout, whatever format they come in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/linear/packed_codes.h"

namespace inferno::ops {

// One for each thread. What a call gives is good until the next; the source outlives it.
class SourceRows {
 public:
  // `wanted`: the matrix's format.
  SourceRows(const RowSource& source, std::uint32_t num_columns, const WeightFormat& wanted);

  // A row's bytes as they are.
  const std::byte* bytes(std::size_t row) const;
  // Of a row of codes what belongs to its groups; no codes.
  CodedRow scales(std::size_t row) const;
  // [K] numbers, dequantized where the source has codes.
  const float* values(std::size_t row);
  // The source's codes, or, of elements, what quantize_row makes of them in the wanted format.
  CodedRow codes(std::size_t row);

 private:
  CodedRow own_codes(std::size_t row);

  const RowSource& source_;
  std::uint32_t num_columns_;
  WeightFormat wanted_;
  std::vector<std::uint8_t> codes_;  // [K]
  std::vector<float> values_;        // [K]
  std::vector<float> scales_;        // [groups]
};

}  // namespace inferno::ops
