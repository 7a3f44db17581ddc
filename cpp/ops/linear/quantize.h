// From elements to codes, without data of any kind: what `quantization` does to a checkpoint of 16
// bits at load.
#pragma once

#include <cstdint>

#include "ops/linear/weight_format.h"

namespace inferno::ops {

// A row as codes, one to a byte.
struct QuantizedRow {
  std::uint8_t* codes;  // [K]
  float* scales;        // [groups]
};

// fp8, int8: the group's largest magnitude becomes the largest code.
// int4: of 16 scales around that, of both signs (only one side reaches -8), the one that leaves the
// least squared error of the group, with the best scale for the codes that it gives.
// A group with a weight that is no number, or infinite, gets NaN for its scale. `format` is one of
// these three without offsets.
void quantize_row(const float* row, std::uint32_t num_columns, const WeightFormat& format,
                  const QuantizedRow& out) noexcept;

}  // namespace inferno::ops
