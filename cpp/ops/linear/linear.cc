#include "ops/linear/linear.h"

#include <algorithm>
#include <stdexcept>

#include "ops/linear/linear_tile.h"
#include "ops/linear/packed_codes.h"

namespace inferno::ops {

namespace {

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

// Widened weights of a block: room on a thread's stack, in its nearest cache.
constexpr std::size_t kWidenedBytes = std::size_t{32} << 10;

class TiledLinear {
 public:
  TiledLinear(const OpContext& context, const LinearArgs& args, const LinearKernels& kernels)
      : args_(args),
        shape_(args.weights.shape),
        kernels_(kernels),
        layout_(shape_),
        tiles_(args.num_rows, kernels.max_rows),
        packed_x_(context.workspace.data()),
        span_(std::min<std::size_t>(kSpanColumns, layout_.group)),
        block_columns_(kernels.block_columns) {
    const bool one_group_at_once = shape_.format.group != 0 && !kernels.integers;
    if (one_group_at_once) block_columns_ = layout_.group;
    const std::size_t num_spans = (layout_.num_columns + span_ - 1) / span_;
    x_row_bytes_ = layout_.num_columns * kernels.x_bytes +
                   (kernels.integers ? num_spans * 2 * sizeof(float) : 0);
    if (context.workspace.size() < args.num_rows * x_row_bytes_) {
      throw std::invalid_argument("other: linear: the workspace is too small");
    }
  }

  void run(const OpContext& context) const {
    const auto pack = [&](std::uint32_t tile, std::uint32_t) { pack_tile(tile); };
    if (args_.num_rows * layout_.num_columns < kPackedAlone) {
      for (std::uint32_t tile = 0; tile < tiles_.count; ++tile) pack_tile(tile);
    } else {
      context.threads.parallel_for(tiles_.count, pack);
    }
    const std::uint32_t panels = num_panels(shape_);
    const std::uint32_t step = panels_per_chunk(context.threads.num_threads());
    const auto multiply = [&](std::uint32_t chunk, std::uint32_t) {
      const std::uint32_t end = std::min(panels, (chunk + 1) * step);
      for (std::uint32_t panel = chunk * step; panel < end; ++panel) run_panel(panel);
    };
    context.threads.parallel_for((panels + step - 1) / step, multiply);
  }

 private:
  std::byte* x_of(std::uint32_t tile) const {
    return packed_x_ + tiles_.first_row(tile) * x_row_bytes_;
  }

  void pack_tile(std::uint32_t tile) const {
    const float* x = args_.x + std::size_t{tiles_.first_row(tile)} * shape_.num_columns;
    kernels_.pack_rows_of_x(
        {x, shape_.num_columns, tiles_.num_rows(tile), static_cast<std::uint32_t>(span_)},
        x_of(tile));
  }

  std::uint32_t panels_per_chunk(std::uint32_t num_threads) const {
    const std::size_t panel_products = kPanelRows * layout_.num_columns * args_.num_rows;
    const std::size_t for_products =
        kProductsPerChunk / std::max<std::size_t>(1, panel_products) + 1;
    const std::size_t for_bytes =
        tiles_.count == 1 ? kBytesPerChunk / std::max<std::size_t>(1, layout_.panel_bytes) : 1;
    const std::size_t even_share = (num_panels(shape_) + num_threads - 1) / num_threads;
    return static_cast<std::uint32_t>(std::max(for_products, std::min(for_bytes, even_share)));
  }

  void run_panel(std::uint32_t panel) const {
    for (std::uint32_t m = 0; m < args_.num_rows; ++m) set_starting_values(args_, m, panel);
    alignas(kAlignment) std::byte widened[kWidenedBytes];
    const std::byte* const data = args_.weights.data + panel * layout_.panel_bytes;
    for (std::size_t block = 0; block < layout_.num_columns; block += block_columns_) {
      LinearTile work = block_of(data, block);
      if (kernels_.widen != nullptr) {
        kernels_.widen(work.w, work.num_columns, widened);
        work.w = widened;
      }
      for (std::uint32_t tile = 0; tile < tiles_.count; ++tile) {
        set_prefetch(work, tile, data + layout_.column_at(block + work.num_columns));
        run_tile(work, panel, tile, block);
      }
    }
  }

  // What all tiles of a block have in common.
  LinearTile block_of(const std::byte* panel, std::size_t block) const {
    LinearTile work{};
    work.num_columns =
        static_cast<std::uint32_t>(std::min(block_columns_, layout_.num_columns - block));
    const std::byte* const header = panel + layout_.group_at(block);
    const bool headers_between = kernels_.integers && shape_.format.group != 0;
    work.w = headers_between ? header : panel + layout_.column_at(block);
    if (!shape_.format.is_quantized()) return work;
    if (!headers_between) work.scales = reinterpret_cast<const float*>(header);
    work.group = shape_.format.group;
    work.offsets = shape_.format.offsets;
    work.span = static_cast<std::uint32_t>(span_);
    return work;
  }

  // A single tile runs straight through its weights and fetches a fixed distance ahead. Of several,
  // the first two fetch one half each of the next block, while this one comes from the cache. What
  // is widened was fetched with that.
  void set_prefetch(LinearTile& work, std::uint32_t tile, const std::byte* next_block) const {
    work.prefetch[0] = work.prefetch[1] = work.w;
    if (kernels_.widen != nullptr) return;
    const std::size_t half =
        std::max(kCacheLine, columns_together(shape_.format.kind) * layout_.column_bytes / 2);
    if (tiles_.count == 1) {
      work.prefetch[0] += kPrefetchBytes;
      work.prefetch[1] += kPrefetchBytes + half;
    } else if (tile < 2) {
      work.prefetch[0] = next_block + tile * half;
      work.prefetch[1] = work.prefetch[0] + half - kCacheLine;
    }
  }

  void run_tile(LinearTile& work, std::uint32_t panel, std::uint32_t tile,
                std::size_t block) const {
    const std::uint32_t num_rows = tiles_.num_rows(tile);
    const std::byte* const x = x_of(tile);
    work.x = x + block * num_rows * kernels_.x_bytes;
    work.spans =
        reinterpret_cast<const float*>(x + layout_.num_columns * num_rows * kernels_.x_bytes) +
        block / span_ * 2 * num_rows;
    work.out = args_.out + std::size_t{tiles_.first_row(tile)} * shape_.num_rows +
               std::size_t{panel} * kPanelRows;
    work.out_stride = shape_.num_rows;
    const std::uint32_t width = panel_width(shape_, panel);
    if (width == kPanelRows) {
      kernels_.tiles[num_rows](work);
      return;
    }
    // The last panel is not full: its sums take a way round, or they would run into the next row.
    float sums[kMaxTileRows * kPanelRows] = {};
    float* out = work.out;
    work.out = sums;
    work.out_stride = kPanelRows;
    kernels_.tiles[num_rows](work);
    for (std::uint32_t r = 0; r < num_rows; ++r) {
      for (std::uint32_t j = 0; j < width; ++j) {
        out[std::size_t{r} * shape_.num_rows + j] += sums[r * kPanelRows + j];
      }
    }
  }

  const LinearArgs& args_;
  const WeightShape& shape_;
  const LinearKernels& kernels_;
  const PanelLayout layout_;
  const Tiles tiles_;
  std::byte* const packed_x_;  // tile by tile
  const std::size_t span_;     // columns of x that share a scale, of integers
  std::size_t block_columns_;
  std::size_t x_row_bytes_;  // of a row of packed x
};

#if defined(INFERNO_X86_KERNELS)
const LinearKernels& kernels_of(Isa isa, WeightKind kind) {
  const bool integers =
      kind == WeightKind::Int8 || kind == WeightKind::Int4 || kind == WeightKind::Mxfp4;
  if (isa == Isa::Avx2) return integers ? integer_kernels_avx2(kind) : linear_kernels_avx2(kind);
  return integers ? integer_kernels_avx512(kind) : linear_kernels_avx512(kind);
}
#endif

}  // namespace

std::size_t linear_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns) noexcept {
  const std::size_t padded = (std::size_t{max_columns} + 3) / 4 * 4;
  return (max_rows * padded * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
}

void linear(const OpContext& context, const LinearArgs& args) {
  if (args.num_rows == 0 || args.weights.shape.num_rows == 0) return;
#if defined(INFERNO_X86_KERNELS)
  if (context.isa != Isa::Portable) {
    const LinearKernels& kernels = kernels_of(context.isa, args.weights.shape.format.kind);
    return TiledLinear(context, args, kernels).run(context);
  }
#endif
  linear_portable(context, args);
}

}  // namespace inferno::ops
