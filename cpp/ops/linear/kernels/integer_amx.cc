// Integer matmul tiles for AMX: bytes of x with sign times bytes of weights without. Sums of a span
// are exact, so that the products have the bits of those for AVX-512.
#include <utility>

#include "ops/linear/kernels/amx_tiles.h"
#include "ops/linear/kernels/integer_codes.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 32;
constexpr std::uint32_t kBlockColumns = 512;

template <int R>
void multiply() {
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(1, 4, 7);
  if constexpr (R > kTileRows) {
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

// The sums of a span of num_columns, C of them at once. x: [span / C][R][C]
template <int R, int C>
void sum_span(const LinearTile& tile, const std::byte* w, const std::byte* x,
              std::uint32_t num_columns, std::int32_t* sums) {
  clear_sums<R>();
  for (std::uint32_t chunk = 0; chunk < num_columns / C; ++chunk) {
    load_x<R>(x, C);
    load_weights(w);
    if (tile.prefetch[0] != tile.w) prefetch_sets(tile, w - tile.w, C / 4);
    multiply<R>();
    x += R * C;
    w += C / 4 * kSetBytes;
  }
  if (const std::uint32_t left = num_columns % C; left != 0) {
    load_x<R>(x, C);
    load_last_weights(w, left / 4 * kSetBytes);
    multiply<R>();
  }
  store_sums<R>(sums);
}

template <WeightKind K, int R>
void add_span(const LinearTile& tile, const float* header, const float* span,
              const std::int32_t* sums) {
  const GroupScales group = GroupScales::load<K>(header, tile.offsets);
  for (int r = 0; r < R; ++r) {
    const std::int32_t* const row = sums + r * kPanelRows;
    const __m512i vectors[kVectors] = {_mm512_load_si512(row), _mm512_load_si512(row + 16)};
    add_row<K>(tile, group, {span[r], span[R + r]}, vectors, tile.out + r * tile.out_stride);
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
    sum_span<R, C>(tile, w, x, num_columns, sums);
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

// Bytes [k / C][row][C], and after them floats [spans][2][row].
template <int C>
void pack_integers_in_lines(const TileRows& rows, void* packed) {
  const std::uint32_t padded = (rows.num_columns + C - 1) / C * C;
  auto* const lines = static_cast<std::byte*>(packed);
  auto* const spans = reinterpret_cast<float*>(lines + std::size_t{padded} * rows.num_rows);
  for (std::uint32_t r = 0; r < rows.num_rows; ++r) {
    const float* row = rows.x + std::size_t{r} * rows.num_columns;
    for (std::uint32_t first = 0; first < rows.num_columns; first += rows.span) {
      const std::uint32_t there = rows.num_columns - first;
      std::int8_t codes[kSpanColumns];
      const float scale = codes_of_span(row + first, there < rows.span ? there : rows.span, codes);
      float* const span = spans + first / rows.span * 2 * rows.num_rows + r;
      span[0] = scale;
      span[rows.num_rows] = scale * static_cast<float>(sum_of(codes));
      const std::uint32_t count = padded - first < rows.span ? padded - first : rows.span;
      for (std::uint32_t k = 0; k < count; k += C) {
        std::memcpy(lines + (std::size_t{(first + k) / C} * rows.num_rows + r) * C, codes + k, C);
      }
    }
  }
}

template <WeightKind K, int C, int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {kMaxRows,
          kBlockColumns,
          sizeof(std::int8_t),
          true,
          {nullptr, tile_of<K, R + 1, C>...},
          pack_integers_in_lines<C>,
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
