// Integer matmul tiles for AMX: bytes of x with sign times bytes of weights without. Sums of a span
// are exact, so that the products have the bits of those for AVX-512.
#include <utility>

#include "ops/linear/kernels/amx_tiles.h"
#include "ops/linear/kernels/integer_codes.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kBlockColumns = 512;

// Bytes with sign by bytes without.
struct Products {
  static void upper() {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
  }
  static void lower() {
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
};

template <WeightKind K, int R>
void add_span(const LinearTile& tile, const float* header, const float* span,
              const std::int32_t* sums) {
  const GroupScales group = GroupScales::load<K>(header, tile.offsets);
  for (int r = 0; r < R; ++r) {
    const std::int32_t* const row = sums + r * kPanelRows;
    const __m512i vectors[kVectors] = {_mm512_load_si512(row), _mm512_load_si512(row + 16)};
    add_row<K>(tile, group, {span[r], span[R + r]}, vectors, tile.out + r * kPanelRows);
  }
}

template <WeightKind K, int R, int C>
void tile_of(const LinearTile& tile) {
  const std::byte* w = tile.w;
  const auto* x = static_cast<const std::byte*>(tile.x);
  const float* span = tile.spans;
  const float* header = tile.scales;
  for (std::uint32_t first = 0; first < tile.num_columns; first += tile.span) {
    if (first != 0 && first % tile.group == 0) {
      header += tile.scales_step;
      w += tile.gap;
    }
    const std::uint32_t left = tile.num_columns - first;
    const std::uint32_t num_columns = left < tile.span ? left : tile.span;
    alignas(kAlignment) std::int32_t sums[kMaxRows * kPanelRows];
    sum_products<Products, R, C / 4>(tile, w, x, num_columns / 4, sums);
    add_span<K, R>(tile, header, span, sums);
    w += num_columns / 4 * kSetBytes;
    x += num_columns * R;
    span += 2 * R;
  }
}

// Halves of bytes as bytes, as the panel has those of int8.
template <WeightKind K>
void widen(const LinearTile& block, std::byte* out) {
  constexpr std::size_t kPrefetchBytes = 4096;
  const std::byte* w = block.w;
  for (std::uint32_t k = 0; k < block.num_columns; k += 4) {
    if (k != 0 && k % block.group == 0) w += block.gap;
    _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes, _MM_HINT_T0);
    __m512i codes[kVectors];
    Codes<K>::load(w, codes);
    _mm512_store_si512(out, codes[0]);
    _mm512_store_si512(out + 64, codes[1]);
    w += Codes<K>::kSetBytes;
    out += kSetBytes;
  }
}

template <WeightKind K, int C, int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {kMaxRows,
          kBlockColumns,
          sizeof(std::int8_t),
          true,
          {nullptr, tile_of<K, R + 1, C>...},
          pack_integers<C>,
          Codes<K>::kSetBytes == kSetBytes ? nullptr : widen<K>,
          C,
          begin_tiles<C / 4>,
          end_tiles};
}

template <WeightKind K, int C>
constexpr LinearKernels kKernels = kernels<K, C>(std::make_integer_sequence<int, kMaxRows>());

template <WeightKind K>
const LinearKernels* kernels_for(std::uint32_t group) {
  if (group % 64 == 0) return &kKernels<K, 64>;
  return group % 32 == 0 ? &kKernels<K, 32> : nullptr;
}

}  // namespace

const LinearKernels* integer_kernels_amx(const WeightFormat& format) noexcept {
  switch (format.kind) {
    case WeightKind::Int8:
      return kernels_for<WeightKind::Int8>(format.group);
    case WeightKind::Int4:
      return kernels_for<WeightKind::Int4>(format.group);
    default:
      return kernels_for<WeightKind::Mxfp4>(format.group);
  }
}

}  // namespace inferno::ops
