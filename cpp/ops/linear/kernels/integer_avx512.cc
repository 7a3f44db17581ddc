// Integer matmul tiles for AVX-512 with VNNI: bytes of weights without sign times bytes of x with
// sign, four columns at once. A panel is two vectors; up to 8 rows keep 16 of the 32 registers in
// sums.
#include "ops/linear/kernels/integer_codes.h"
#include "ops/linear/kernels/integer_kernels.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 8;  // 12 are no faster
// The nearest cache has room for the next block of four bits, but few places for what it waits for.
template <WeightKind K>
constexpr _mm_hint kPrefetchTo = K == WeightKind::Int8 ? _MM_HINT_T1 : _MM_HINT_T0;

template <WeightKind K, int R>
void add_span(const LinearTile& tile, const GroupScales& group, const float* span,
              const __m512i (&sums)[R][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    add_row<K>(tile, group, {span[r], span[R + r]}, sums[r], tile.out + r * kPanelRows);
  }
}

// sum += the products of four columns. In assembly, because GCC 12 keeps some sums on the stack
// otherwise, though all have a register: a fifth of the speed.
inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i codes, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
}

template <WeightKind K, int R>
void tile_of(const LinearTile& tile) {
  const std::byte* w = tile.w;
  const auto* x = static_cast<const std::int32_t*>(tile.x);  // sets of four columns
  const float* span = tile.spans;
  const float* header = tile.scales;
  GroupScales group = GroupScales::load<K>(header, tile.offsets);
  for (std::uint32_t first = 0; first < tile.num_columns; first += tile.span) {
    if (first != 0 && first % tile.group == 0) {
      w += tile.gap;
      header += tile.scales_step;
      group = GroupScales::load<K>(header, tile.offsets);
    }
    const std::uint32_t left = tile.num_columns - first;
    const std::uint32_t num_sets = (left < tile.span ? left : tile.span) / 4;
    __m512i sums[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (std::uint32_t set = 0; set < num_sets; ++set) {
      const std::ptrdiff_t at = w - tile.w;
      _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + at, kPrefetchTo<K>);
      if constexpr (Codes<K>::kSetBytes > 64) {
        _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + at, kPrefetchTo<K>);
      }
      __m512i codes[kVectors];
      Codes<K>::load(w, codes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i xr = _mm512_set1_epi32(x[r]);
        add_products(sums[r][0], codes[0], xr);
        add_products(sums[r][1], codes[1], xr);
      }
      x += R;
      w += Codes<K>::kSetBytes;
    }
    add_span<K, R>(tile, group, span, sums);
    span += 2 * R;
  }
}

}  // namespace

const LinearKernels& integer_kernels_avx512(WeightKind kind) noexcept {
  return kernels_of<kMaxRows>(kind);
}

}  // namespace inferno::ops
