#include "ops/linear/linear.h"

#include <algorithm>

#include "ops/linear/tiled_linear.h"

namespace inferno::ops {

namespace {

void set_starting_values(const LinearArgs& args, std::uint32_t m, std::uint32_t panel) {
  const std::uint32_t first = panel * kPanelRows;
  float* out = args.out + std::size_t{m} * args.weights.shape.num_rows + first;
  for (std::uint32_t j = 0; j < panel_width(args.weights.shape, panel); ++j) {
    out[j] = (args.accumulate ? out[j] : 0.0F) + (args.bias ? args.bias[first + j] : 0.0F);
  }
}

// The portable product: a block of a panel as floats, then row after row.

constexpr std::uint32_t kPortableBlockColumns = 256;

using PortableBlock = float[kPortableBlockColumns][kPanelRows];

// Columns begin to end - 1 of a panel.
void load_block(const PackedWeights& weights, std::uint32_t panel, std::uint32_t begin,
                std::uint32_t end, PortableBlock& block) {
  float row[kPortableBlockColumns];
  for (std::uint32_t j = 0; j < kPanelRows; ++j) {
    unpack_columns(weights, panel * kPanelRows + j, {begin, end}, row);
    for (std::uint32_t k = begin; k < end; ++k) block[k - begin][j] = row[k - begin];
  }
}

// One row, one block: the sums of a panel's outputs side by side.
void multiply_block(const float* x, std::uint32_t num_columns, const PortableBlock& block,
                    float* out, std::uint32_t width) {
  float sums[kPanelRows] = {};
  for (std::uint32_t k = 0; k < num_columns; ++k) {
    for (std::uint32_t j = 0; j < kPanelRows; ++j) sums[j] += x[k] * block[k][j];
  }
  for (std::uint32_t j = 0; j < width; ++j) out[j] += sums[j];
}

void linear_portable(const OpContext& context, const LinearArgs& args) {
  const WeightShape& shape = args.weights.shape;
  context.threads.parallel_for(num_panels(shape), [&](std::uint32_t panel, std::uint32_t) {
    for (std::uint32_t m = 0; m < args.num_rows; ++m) set_starting_values(args, m, panel);
    PortableBlock block;
    for (std::uint32_t begin = 0; begin < shape.num_columns; begin += kPortableBlockColumns) {
      const std::uint32_t end = std::min(begin + kPortableBlockColumns, shape.num_columns);
      load_block(args.weights, panel, begin, end, block);
      for (std::uint32_t m = 0; m < args.num_rows; ++m) {
        const float* x = args.x + std::size_t{m} * shape.num_columns + begin;
        float* out = args.out + std::size_t{m} * shape.num_rows + panel * kPanelRows;
        multiply_block(x, end - begin, block, out, panel_width(shape, panel));
      }
    }
  });
}

#if defined(INFERNO_X86_KERNELS)
// Up to so many rows vectors multiply integers faster than tiles do, to the same bits.
constexpr std::uint32_t max_rows_of_vectors(WeightKind kind) {
  return kind == WeightKind::Int8 ? 4 : 12;
}

const LinearKernels& kernels_of(Isa isa, const WeightFormat& format, std::uint32_t num_rows) {
  const WeightKind kind = format.kind;
  const bool integers =
      kind == WeightKind::Int8 || kind == WeightKind::Int4 || kind == WeightKind::Mxfp4;
  if (isa < Isa::Avx512Bf16) {
    if (!integers) return linear_kernels_avx2(kind);
    if (isa != Isa::AvxVnni) return integer_kernels_avx2(kind);
    return has_vex_vnni() ? integer_kernels_avxvnni(kind) : integer_kernels_avx512vnni(kind);
  }
  const bool vectors = integers && num_rows <= max_rows_of_vectors(kind);
  if (isa == Isa::Amx && !vectors) {
    const auto* tiles = integers ? integer_kernels_amx(format) : linear_kernels_amx(format);
    if (tiles != nullptr) return *tiles;
  }
  return integers ? integer_kernels_avx512(kind) : linear_kernels_avx512(kind);
}
#endif

}  // namespace

std::size_t linear_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns,
                                   std::uint32_t num_threads) noexcept {
  return tiled_workspace_bytes(max_rows, max_columns, num_threads);
}

void linear(const OpContext& context, const LinearArgs& args) {
  if (args.num_rows == 0 || args.weights.shape.num_rows == 0) return;
#if defined(INFERNO_X86_KERNELS)
  if (context.isa != Isa::Portable) {
    const LinearKernels& kernels =
        kernels_of(context.isa, args.weights.shape.format, args.num_rows);
    return tiled_linear(context, args, kernels);
  }
#endif
  linear_portable(context, args);
}

}  // namespace inferno::ops
