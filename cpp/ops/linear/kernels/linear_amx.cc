// Matmul tiles for AMX: bf16, and fp8 that was widened to it. Up to 32 rows of x and the 32 outputs
// of a panel are four tiles of sums.
#include <utility>

#include "ops/linear/kernels/amx_tiles.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 32;
constexpr std::uint32_t kColumns = 32;  // of a tile of x
// A block of a panel stays in the nearest cache beside the tile of x that passes, 16 KB each.
constexpr std::uint32_t kBlockColumns = 256;

template <int R>
void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (R > kTileRows) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <int R>
void add_to_out(const LinearTile& tile, const float* sums) {
  for (int r = 0; r < R; ++r) {
    for (std::size_t v = 0; v < kPanelRows; v += 16) {
      float* const out = tile.out + r * tile.out_stride + v;
      const __m512 sum = _mm512_load_ps(sums + r * kPanelRows + v);
      const __m512 before = _mm512_loadu_ps(out);
      if (tile.scales == nullptr) {
        _mm512_storeu_ps(out, _mm512_add_ps(before, sum));
      } else {
        _mm512_storeu_ps(out, _mm512_fmadd_ps(sum, _mm512_load_ps(tile.scales + v), before));
      }
    }
  }
}

template <int R>
void tile_bf16(const LinearTile& tile) {
  constexpr std::size_t kXBytes = R * kTileLine;
  clear_sums<R>();
  const auto* x = static_cast<const std::byte*>(tile.x);
  const std::byte* w = tile.w;
  for (std::uint32_t chunk = 0; chunk < tile.num_columns / kColumns; ++chunk) {
    load_x<R>(x, kTileLine);
    load_weights(w);
    if (tile.prefetch[0] != tile.w) prefetch_sets(tile, w - tile.w, kTileRows);
    multiply<R>();
    x += kXBytes;
    w += kPanelTileBytes;
  }
  if (const std::uint32_t left = tile.num_columns % kColumns; left != 0) {
    load_x<R>(x, kTileLine);
    load_last_weights(w, left / 2 * kSetBytes);
    multiply<R>();
  }
  alignas(kAlignment) float sums[kMaxRows * kPanelRows];
  store_sums<R>(sums);
  add_to_out<R>(tile, sums);
}

void pack_bf16(const TileRows& rows, void* packed) {
  auto* const lines = static_cast<std::byte*>(packed);
  for (std::uint32_t r = 0; r < rows.num_rows; ++r) {
    const float* row = rows.x + std::size_t{r} * rows.num_columns;
    std::byte* to = lines + std::size_t{r} * kTileLine;
    for (std::uint32_t k = 0; k < rows.num_columns; k += kColumns) {
      const std::uint32_t columns = rows.num_columns - k;
      const __mmask32 mask = columns >= kColumns ? ~0U : (1U << columns) - 1U;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), row + k);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), row + k + 16);
      _mm512_store_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
      to += std::size_t{rows.num_rows} * kTileLine;
    }
  }
}

template <int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {kMaxRows,
          kBlockColumns,
          sizeof(std::uint16_t),
          false,
          {nullptr, tile_bf16<R + 1>...},
          pack_bf16,
          nullptr,
          kColumns,
          begin_tiles<kTileRows>,
          end_tiles};
}

constexpr LinearKernels kBf16Kernels = kernels(std::make_integer_sequence<int, kMaxRows>());

LinearKernels widened(WeightKind kind) {
  const LinearKernels& vectors = linear_kernels_avx512(kind);
  LinearKernels tiles = kBf16Kernels;
  tiles.block_columns = vectors.block_columns;
  tiles.widen = vectors.widen;
  return tiles;
}

}  // namespace

const LinearKernels* linear_kernels_amx(const WeightFormat& format) noexcept {
  static const LinearKernels fp8_kernels = widened(WeightKind::Fp8);
  if (format.kind == WeightKind::BF16) return &kBf16Kernels;
  if (format.kind == WeightKind::Fp8 && format.group % kColumns == 0) return &fp8_kernels;
  return nullptr;
}

}  // namespace inferno::ops
