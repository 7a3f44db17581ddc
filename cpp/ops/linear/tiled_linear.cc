#include "ops/linear/tiled_linear.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ops/linear/packed_codes.h"

namespace inferno::ops {

namespace {

// A chunk of panels is at least so many products, or waking a thread takes longer than the work,
// ...
constexpr std::size_t kProductsPerChunk = 32768;
// ... and for one tile of rows, where reading the weights is all, so many bytes of them.
constexpr std::size_t kBytesPerChunk = std::size_t{128} << 10;
// Packing fewer elements of x than this is not worth waking a thread.
constexpr std::size_t kPackedAlone = 32768;
constexpr std::size_t kCacheLine = 64;
// How far ahead a single tile fetches its own weights, in bytes.
constexpr std::size_t kPrefetchBytes = 4096;
// Rows that pass by a panel together. Each such part reads all weights once.
constexpr std::uint32_t kPartRows = 512;
// Where a part's x is larger than this, a thread's cache does not keep all of it, but a block of
// its columns, and so many panels pass by that before the next. Their sums lie side by side
// meanwhile: rows of a wide output are a power of two apart and would not stay in the cache.
constexpr std::size_t kXBytesInCache = std::size_t{1} << 20;
constexpr std::uint32_t kPanelsAtOnce = 8;
// Widened weights of a block: room on a thread's stack, in its nearest cache.
constexpr std::size_t kWidenedBytes = std::size_t{32} << 10;
// Of all kernels.
constexpr std::size_t kMostXColumns = 64;

// Of one thread.
constexpr std::size_t sums_bytes(std::uint32_t num_rows) {
  return std::size_t{std::min(num_rows, kPartRows)} * kPanelsAtOnce * kPanelRows * sizeof(float);
}

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

// What one thread works on: tiles against panels.
struct Piece {
  std::uint32_t first_tile;
  std::uint32_t end_tile;
  std::uint32_t first_panel;
  std::uint32_t end_panel;
  float* sums;  // [panels, rows, kPanelRows]
};

class TiledLinear {
 public:
  TiledLinear(const OpContext& context, const LinearArgs& args, const LinearKernels& kernels)
      : args_(args),
        shape_(args.weights.shape),
        kernels_(kernels),
        layout_(shape_),
        tiles_(args.num_rows, kernels.max_rows),
        num_panels_(num_panels(shape_)),
        packed_x_(context.workspace.data()),
        span_(std::min<std::size_t>(kSpanColumns, layout_.group)),
        block_columns_(kernels.block_columns),
        x_columns_(round_up(layout_.num_columns, kernels.x_columns)) {
    const bool one_group_at_once = shape_.format.group != 0 && !kernels.integers;
    if (one_group_at_once) block_columns_ = layout_.group;
    const std::size_t num_spans = (layout_.num_columns + span_ - 1) / span_;
    x_row_bytes_ =
        x_columns_ * kernels.x_bytes + (kernels.integers ? num_spans * 2 * sizeof(float) : 0);
    tiles_per_part_ = std::max(1U, std::min(tiles_.count, kPartRows / kernels.max_rows));
    const std::size_t part_bytes = std::min(args.num_rows, kPartRows) * x_row_bytes_;
    panels_at_once_ = part_bytes > kXBytesInCache ? kPanelsAtOnce : 1;
    if (context.workspace.size() < needed_bytes(context.threads.num_threads())) {
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
    const std::uint32_t step = panels_per_chunk(context.threads.num_threads());
    const std::uint32_t chunks = (num_panels_ + step - 1) / step;
    const std::uint32_t parts = (tiles_.count + tiles_per_part_ - 1) / tiles_per_part_;
    const auto multiply = [&](std::uint32_t index, std::uint32_t thread) {
      const std::uint32_t tile = index / chunks * tiles_per_part_;
      const std::uint32_t panel = index % chunks * step;
      multiply_chunk({tile, std::min(tiles_.count, tile + tiles_per_part_), panel,
                      std::min(num_panels_, panel + step), sums_of(thread)});
    };
    context.threads.parallel_for(parts * chunks, multiply);
  }

 private:
  std::size_t x_bytes() const { return round_up(args_.num_rows * x_row_bytes_, kAlignment); }
  std::size_t needed_bytes(std::uint32_t num_threads) const {
    return x_bytes() + kAlignment + num_threads * sums_bytes(args_.num_rows);
  }
  // Behind x, of which a tile that is one row lower than the others may read a line too much.
  float* sums_of(std::uint32_t thread) const {
    return reinterpret_cast<float*>(packed_x_ + x_bytes() + kAlignment +
                                    thread * sums_bytes(args_.num_rows));
  }

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
    const std::size_t even_share = (num_panels_ + num_threads - 1) / num_threads;
    const std::size_t wanted = std::max<std::size_t>(for_bytes, panels_at_once_);
    return static_cast<std::uint32_t>(std::max(for_products, std::min(wanted, even_share)));
  }

  void multiply_chunk(const Piece& chunk) const {
    if (kernels_.begin != nullptr) kernels_.begin(tiles_.num_rows(0));
    Piece piece = chunk;
    while (piece.first_panel < chunk.end_panel) {
      piece.end_panel = std::min(chunk.end_panel, piece.first_panel + panels_at_once_);
      multiply(piece);
      piece.first_panel = piece.end_panel;
    }
    if (kernels_.end != nullptr) kernels_.end();
  }

  // A block of columns of each panel, then the next block.
  void multiply(const Piece& piece) const {
    set_starting_values(piece);
    for (std::size_t k = 0; k < layout_.num_columns; k += block_columns_) {
      for (std::uint32_t panel = piece.first_panel; panel < piece.end_panel; ++panel) {
        multiply_block(piece, panel, k);
      }
    }
    write_out(piece);
  }

  void multiply_block(const Piece& piece, std::uint32_t panel, std::size_t k) const {
    alignas(kAlignment) std::byte widened[kWidenedBytes];
    LinearTile work = block_of(args_.weights.data + panel * layout_.panel_bytes, k);
    const std::byte* const next = next_block(work, panel, k);
    if (kernels_.widen != nullptr) {
      kernels_.widen(work, widened);
      work.w = widened;
      work.gap = 0;
    }
    work.out = sums_of(piece, panel);
    for (std::uint32_t tile = piece.first_tile; tile < piece.end_tile; ++tile) {
      const std::uint32_t num_rows = tiles_.num_rows(tile);
      const std::byte* const x = x_of(tile);
      work.x = x + k * num_rows * kernels_.x_bytes;
      work.spans = reinterpret_cast<const float*>(x + x_columns_ * num_rows * kernels_.x_bytes) +
                   k / span_ * 2 * num_rows;
      set_prefetch(work, tile - piece.first_tile, next);
      kernels_.tiles[num_rows](work);
      work.out += num_rows * kPanelRows;
    }
  }

  // What all tiles of a block have in common.
  LinearTile block_of(const std::byte* panel, std::size_t k) const {
    LinearTile work{};
    work.num_columns =
        static_cast<std::uint32_t>(std::min(block_columns_, layout_.num_columns - k));
    work.w = panel + layout_.column_at(k);
    if (!shape_.format.is_quantized()) return work;
    work.scales = reinterpret_cast<const float*>(panel + layout_.group_at(k));
    work.scales_step =
        (layout_.header_bytes + layout_.group * layout_.column_bytes) / sizeof(float);
    work.gap = layout_.header_bytes;
    work.group = static_cast<std::uint32_t>(layout_.group);
    work.offsets = shape_.format.offsets;
    work.span = static_cast<std::uint32_t>(span_);
    return work;
  }

  const std::byte* next_block(const LinearTile& work, std::uint32_t panel, std::size_t k) const {
    if (panels_at_once_ > 1) return work.w + layout_.panel_bytes;
    return args_.weights.data + panel * layout_.panel_bytes +
           layout_.column_at(k + work.num_columns);
  }

  // A single tile runs straight through its weights and fetches a fixed distance ahead. Of several,
  // the first two fetch one half each of the next block, while this one comes from the cache. What
  // is widened was fetched with that.
  void set_prefetch(LinearTile& work, std::uint32_t tile, const std::byte* next) const {
    work.prefetch[0] = work.prefetch[1] = work.w;
    if (kernels_.widen != nullptr) return;
    const std::size_t half =
        std::max(kCacheLine, columns_together(shape_.format.kind) * layout_.column_bytes / 2);
    if (tiles_.count == 1) {
      work.prefetch[0] += kPrefetchBytes;
      work.prefetch[1] += kPrefetchBytes + half;
    } else if (tile < 2) {
      work.prefetch[0] = next + tile * half;
      work.prefetch[1] = work.prefetch[0] + half - kCacheLine;
    }
  }

  std::uint32_t first_row(const Piece& piece) const { return tiles_.first_row(piece.first_tile); }
  std::uint32_t num_rows(const Piece& piece) const {
    return tiles_.first_row(piece.end_tile) - first_row(piece);
  }

  float* sums_of(const Piece& piece, std::uint32_t panel) const {
    return piece.sums + std::size_t{panel - piece.first_panel} * num_rows(piece) * kPanelRows;
  }

  // Calls visit(a row's sums of a panel, the same in the output, the panel's width, its bias).
  template <typename Visit>
  void for_each_row(const Piece& piece, Visit visit) const {
    for (std::uint32_t panel = piece.first_panel; panel < piece.end_panel; ++panel) {
      const std::size_t column = std::size_t{panel} * kPanelRows;
      float* sums = sums_of(piece, panel);
      float* out = args_.out + std::size_t{first_row(piece)} * shape_.num_rows + column;
      for (std::uint32_t row = 0; row < num_rows(piece); ++row) {
        visit(sums, out, panel_width(shape_, panel),
              args_.bias == nullptr ? nullptr : args_.bias + column);
        sums += kPanelRows;
        out += shape_.num_rows;
      }
    }
  }

  void set_starting_values(const Piece& piece) const {
    if (!args_.accumulate && args_.bias == nullptr) {
      const std::size_t panels = piece.end_panel - piece.first_panel;
      std::fill_n(piece.sums, panels * num_rows(piece) * kPanelRows, 0.0F);
      return;
    }
    for_each_row(piece, [&](float* sums, const float* out, std::uint32_t width, const float* bias) {
      std::fill_n(sums, kPanelRows, 0.0F);
      for (std::uint32_t j = 0; j < width; ++j) {
        sums[j] = (args_.accumulate ? out[j] : 0.0F) + (bias == nullptr ? 0.0F : bias[j]);
      }
    });
  }

  void write_out(const Piece& piece) const {
    for_each_row(piece, [](const float* sums, float* out, std::uint32_t width, const float*) {
      if (width == kPanelRows) {
        std::memcpy(out, sums, kPanelRows * sizeof(float));  // of a length that is known
      } else {
        std::copy_n(sums, width, out);
      }
    });
  }

  const LinearArgs& args_;
  const WeightShape& shape_;
  const LinearKernels& kernels_;
  const PanelLayout layout_;
  const Tiles tiles_;
  const std::uint32_t num_panels_;
  std::byte* const packed_x_;  // tile by tile
  const std::size_t span_;     // columns of x that share a scale, of integers
  std::size_t block_columns_;
  const std::size_t x_columns_;  // of packed x, padding included
  std::size_t x_row_bytes_;
  std::uint32_t tiles_per_part_;
  std::uint32_t panels_at_once_;  // 1: each is read from its first column to its last
};

}  // namespace

void tiled_linear(const OpContext& context, const LinearArgs& args, const LinearKernels& kernels) {
  TiledLinear(context, args, kernels).run(context);
}

std::size_t tiled_workspace_bytes(std::uint32_t max_rows, std::uint32_t max_columns,
                                  std::uint32_t num_threads) noexcept {
  const std::size_t x = max_rows * round_up(max_columns, kMostXColumns) * sizeof(float);
  return round_up(x, kAlignment) + kAlignment + num_threads * sums_bytes(max_rows);
}

}  // namespace inferno::ops
