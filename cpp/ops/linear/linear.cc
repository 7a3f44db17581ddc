#include "ops/linear/linear.h"

#include <algorithm>
#include <stdexcept>

#include "ops/linear/linear_tile.h"

namespace inferno::ops {

namespace {

std::size_t padded_columns(const WeightShape& shape) {
  return (std::size_t{shape.num_columns} + 1) / 2 * 2;
}

std::uint32_t num_panels(const WeightShape& shape) {
  return (shape.num_rows + kPanelRows - 1) / kPanelRows;
}

// How many outputs of a panel are outputs of the matrix.
std::uint32_t panel_width(const WeightShape& shape, std::uint32_t panel) {
  return std::min(kPanelRows, shape.num_rows - panel * kPanelRows);
}

void set_starting_values(const LinearArgs& args, std::uint32_t m, std::uint32_t panel) {
  const std::uint32_t first = panel * kPanelRows;
  float* out = args.out + std::size_t{m} * args.weights.shape.num_rows + first;
  for (std::uint32_t j = 0; j < panel_width(args.weights.shape, panel); ++j) {
    out[j] = (args.accumulate ? out[j] : 0.0F) + (args.bias ? args.bias[first + j] : 0.0F);
  }
}

// ---- The portable product: a block of a panel as floats, then row after row. ----

constexpr std::uint32_t kPortableBlockColumns = 256;

using PortableBlock = float[kPortableBlockColumns][kPanelRows];

// Columns begin to end - 1 of a panel.
void load_block(const PackedWeights& weights, std::uint32_t panel, std::uint32_t begin,
                std::uint32_t end, PortableBlock& block) {
  const WeightShape& shape = weights.shape;
  for (std::uint32_t k = begin; k < end; ++k) {
    const std::size_t first = packed_index(shape, panel * kPanelRows, k);
    const std::size_t step = packed_index(shape, panel * kPanelRows + 1, k) - first;
    for (std::uint32_t j = 0; j < kPanelRows; ++j) {
      block[k - begin][j] = load_element(weights.data, shape.dtype, first + j * step);
    }
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

// ---- The tiled product: the same sums, by an instruction set's kernels. ----

// A chunk of panels is at least so many products, or waking a thread takes longer than the work,
// ...
constexpr std::size_t kProductsPerChunk = 32768;
// ... and for one row, where reading the weights is all, so many bytes of them.
constexpr std::size_t kBytesPerChunk = std::size_t{128} << 10;
// Packing fewer elements of x than this is not worth waking a thread.
constexpr std::size_t kPackedAlone = 32768;
constexpr std::size_t kCacheLine = 64;
// How far ahead a single tile fetches its own weights, in bytes.
constexpr std::size_t kPrefetchBytes = 4096;

// M rows in as few tiles as the kernels allow, all nearly of one height.
struct Tiles {
  std::uint32_t count;
  std::uint32_t height;      // of the lower tiles
  std::uint32_t num_taller;  // the first ones have a row more

  Tiles(std::uint32_t num_rows, std::uint32_t max_rows)
      : count((num_rows + max_rows - 1) / max_rows),
        height(num_rows / count),
        num_taller(num_rows % count) {}
  std::uint32_t first_row(std::uint32_t tile) const {
    return tile * height + std::min(tile, num_taller);
  }
  std::uint32_t num_rows(std::uint32_t tile) const { return height + (tile < num_taller ? 1 : 0); }
};

struct TiledLinear {
  const LinearArgs& args;
  const LinearKernels& kernels;
  const std::byte* packed_x;  // tile by tile
  Tiles tiles;
  std::size_t columns;      // K, padded
  std::size_t panel_bytes;  // of weights

  void pack_tile(std::uint32_t tile) const {
    const std::uint32_t row = tiles.first_row(tile);
    const std::uint32_t num_columns = args.weights.shape.num_columns;
    kernels.pack_rows_of_x(args.x + std::size_t{row} * num_columns, num_columns,
                           tiles.num_rows(tile),
                           const_cast<std::byte*>(packed_x) + row * columns * kernels.x_bytes);
  }

  // A single tile runs straight through its weights and fetches a fixed distance ahead. Of several,
  // the first two fetch one half each of the next block, while this one comes from the cache.
  void set_prefetch(LinearTile& work, std::uint32_t tile, std::size_t block_bytes) const {
    const std::size_t half_pair = kPanelRows * dtype_bytes(args.weights.shape.dtype);
    if (tiles.count == 1) {
      work.prefetch[0] = work.w + kPrefetchBytes;
      work.prefetch[1] = work.prefetch[0] + half_pair;
    } else if (tile < 2) {
      work.prefetch[0] = work.w + block_bytes + tile * half_pair;
      work.prefetch[1] = work.prefetch[0] + half_pair - kCacheLine;
    } else {
      work.prefetch[0] = work.prefetch[1] = work.w;
    }
  }

  void run_tile(std::uint32_t panel, std::uint32_t tile, std::size_t block) const {
    const WeightShape& shape = args.weights.shape;
    const std::size_t num_columns = std::min<std::size_t>(kernels.block_columns, columns - block);
    const std::size_t column_bytes = kPanelRows * dtype_bytes(shape.dtype);
    const std::uint32_t row = tiles.first_row(tile);
    const std::uint32_t num_rows = tiles.num_rows(tile);
    LinearTile work;
    work.x = packed_x + (row * columns + block * num_rows) * kernels.x_bytes;
    work.w = args.weights.data + panel * panel_bytes + block * column_bytes;
    work.num_columns = static_cast<std::uint32_t>(num_columns);
    work.out = args.out + std::size_t{row} * shape.num_rows + std::size_t{panel} * kPanelRows;
    work.out_stride = shape.num_rows;
    set_prefetch(work, tile, num_columns * column_bytes);
    const std::uint32_t width = panel_width(shape, panel);
    if (width == kPanelRows) {
      kernels.tiles[num_rows](work);
      return;
    }
    // The last panel is not full: its sums take a way round, or they would run into the next row.
    float sums[kMaxTileRows * kPanelRows] = {};
    float* out = work.out;
    work.out = sums;
    work.out_stride = kPanelRows;
    kernels.tiles[num_rows](work);
    for (std::uint32_t r = 0; r < num_rows; ++r) {
      for (std::uint32_t j = 0; j < width; ++j) {
        out[std::size_t{r} * shape.num_rows + j] += sums[r * kPanelRows + j];
      }
    }
  }

  void run_panel(std::uint32_t panel) const {
    for (std::uint32_t m = 0; m < args.num_rows; ++m) set_starting_values(args, m, panel);
    for (std::size_t block = 0; block < columns; block += kernels.block_columns) {
      for (std::uint32_t tile = 0; tile < tiles.count; ++tile) run_tile(panel, tile, block);
    }
  }
};

std::uint32_t panels_per_chunk(const TiledLinear& linear, std::uint32_t num_threads) {
  const std::size_t panel_products = kPanelRows * linear.columns * linear.args.num_rows;
  const std::size_t for_products = kProductsPerChunk / std::max<std::size_t>(1, panel_products) + 1;
  const std::size_t for_bytes =
      linear.tiles.count == 1 ? kBytesPerChunk / std::max<std::size_t>(1, linear.panel_bytes) : 1;
  const std::uint32_t panels = num_panels(linear.args.weights.shape);
  const std::size_t even_share = (panels + num_threads - 1) / num_threads;
  return static_cast<std::uint32_t>(std::max(for_products, std::min(for_bytes, even_share)));
}

void linear_tiled(const OpContext& context, const LinearArgs& args, const LinearKernels& kernels) {
  const WeightShape& shape = args.weights.shape;
  const std::size_t columns = padded_columns(shape);
  if (context.workspace.size() < args.num_rows * columns * kernels.x_bytes) {
    throw std::invalid_argument("other: linear: the workspace is too small");
  }
  const TiledLinear linear{args,
                           kernels,
                           context.workspace.data(),
                           Tiles(args.num_rows, kernels.max_rows),
                           columns,
                           columns * kPanelRows * dtype_bytes(shape.dtype)};
  if (args.num_rows * columns < kPackedAlone) {
    for (std::uint32_t tile = 0; tile < linear.tiles.count; ++tile) linear.pack_tile(tile);
  } else {
    context.threads.parallel_for(
        linear.tiles.count, [&](std::uint32_t tile, std::uint32_t) { linear.pack_tile(tile); });
  }
  const std::uint32_t panels = num_panels(shape);
  const std::uint32_t step = panels_per_chunk(linear, context.threads.num_threads());
  context.threads.parallel_for((panels + step - 1) / step, [&](std::uint32_t chunk, std::uint32_t) {
    const std::uint32_t end = std::min(panels, (chunk + 1) * step);
    for (std::uint32_t panel = chunk * step; panel < end; ++panel) linear.run_panel(panel);
  });
}

}  // namespace

std::size_t linear_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns) noexcept {
  const std::size_t padded = (std::size_t{max_columns} + 1) / 2 * 2;
  return (max_rows * padded * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
}

void linear(const OpContext& context, const LinearArgs& args) {
  if (args.num_rows == 0 || args.weights.shape.num_rows == 0) return;
  switch (context.isa) {
#if defined(INFERNO_X86_KERNELS)
    case Isa::Avx512Bf16:
      return linear_tiled(context, args, linear_kernels_avx512(args.weights.shape.dtype));
    case Isa::Avx2:
      return linear_tiled(context, args, linear_kernels_avx2(args.weights.shape.dtype));
#endif
    default:
      return linear_portable(context, args);
  }
}

}  // namespace inferno::ops
