#include "ops/matmul.h"

#include <algorithm>

namespace inferno::ops {

namespace {

constexpr std::uint32_t kBlockColumns = 512;  // K is summed in blocks of this length

// One panel of outputs for one row: sums side by side, one for each output of the panel.
void multiply_panel(const MatmulArgs& args, std::uint32_t m, std::uint32_t panel) {
  const WeightShape& shape = args.weights.shape;
  const std::uint32_t first = panel * kPanelRows;
  const std::uint32_t width = std::min(kPanelRows, shape.num_rows - first);
  const float* x = args.x + std::size_t{m} * shape.num_columns;
  float* out = args.out + std::size_t{m} * shape.num_rows + first;
  for (std::uint32_t j = 0; j < width; ++j) {
    out[j] = (args.accumulate ? out[j] : 0.0F) + (args.bias ? args.bias[first + j] : 0.0F);
  }
  for (std::uint32_t block = 0; block < shape.num_columns; block += kBlockColumns) {
    const std::uint32_t end = std::min(block + kBlockColumns, shape.num_columns);
    float sums[kPanelRows] = {};
    for (std::uint32_t k = block; k < end; ++k) {
      for (std::uint32_t j = 0; j < width; ++j) {
        const std::size_t index = packed_index(shape, first + j, k);
        sums[j] += x[k] * load_element(args.weights.data, shape.dtype, index);
      }
    }
    for (std::uint32_t j = 0; j < width; ++j) out[j] += sums[j];
  }
}

void matmul_portable(const OpContext& context, const MatmulArgs& args) {
  const std::uint32_t num_panels = (args.weights.shape.num_rows + kPanelRows - 1) / kPanelRows;
  context.threads.parallel_for(num_panels, [&](std::uint32_t panel, std::uint32_t) {
    for (std::uint32_t m = 0; m < args.num_rows; ++m) multiply_panel(args, m, panel);
  });
}

}  // namespace

std::size_t matmul_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns) noexcept {
  const std::size_t padded = (std::size_t{max_columns} + 1) / 2 * 2;
  return (max_rows * padded * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
}

void matmul(const OpContext& context, const MatmulArgs& args) { matmul_portable(context, args); }

}  // namespace inferno::ops
