// Matmul tiles for AMX: bf16, and fp8 that was widened to it. Up to 32 rows of x and the 32 outputs
// of a panel are four tiles of sums.
#include <utility>

#include "ops/linear/kernels/amx_tiles.h"
#include "ops/linear/kernels/float_sums.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kColumns = 32;  // of a tile of x
// A block of a panel stays in the nearest cache beside the tile of x that passes, 16 KB each.
constexpr std::uint32_t kBlockColumns = 256;

struct Products {
  static void upper() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  static void lower() {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

template <int R>
void tile_bf16(const LinearTile& tile) {
  alignas(kAlignment) float sums[kMaxRows * kPanelRows];
  sum_products<Products, R, kTileRows>(tile, tile.w, static_cast<const std::byte*>(tile.x),
                                       tile.num_columns / 2, sums);
  for (int r = 0; r < R; ++r) {
    for (std::size_t v = 0; v < kPanelRows; v += 16) {
      const std::size_t at = r * kPanelRows + v;
      add_to_out(tile, at, _mm512_load_ps(sums + at));
    }
  }
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
