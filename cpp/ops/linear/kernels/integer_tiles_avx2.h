// Codes of four bits as bytes without sign, and what a span's sums become, with the vectors of
// AVX2. For files compiled for it only; the unnamed namespace keeps what is made of it out of sight
// of the linker.
#pragma once

#include <immintrin.h>

#include "ops/linear/kernels/integer_kernels.h"

namespace inferno::ops {
namespace {

// Vectors of eight rows, F and up, at a set of four columns.
template <WeightKind K>
struct Codes;

// The sums of a span of x, [num_sets][R] sets of four columns, times vectors F to F + V - 1 of the
// panel, as 32 bits; answers where the next span's codes begin.
template <WeightKind K, int R, int F, int V>
const std::byte* sum_span(const LinearTile& tile, const std::byte* w, const std::int32_t* x,
                          std::uint32_t num_sets, __m256i (&sums)[R][V]);

// Rows 16 and up stand in the upper halves: vectors 0 and 2 come of one load, 1 and 3 of the other.
template <>
struct Codes<WeightKind::Int4> {
  static constexpr float kZeroPoint = 8;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 64;
  template <int F, int V>
  static void load(const std::byte* w, __m256i (&codes)[V]) {
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w) + (F + v) % 2);
      codes[v] = _mm256_and_si256(F + v < 2 ? both : _mm256_srli_epi16(both, 4), low);
    }
  }
};

// Twice the value plus 12.
template <>
struct Codes<WeightKind::Mxfp4> {
  static constexpr float kZeroPoint = 12;
  static constexpr float kUnit = 0.5F;
  static constexpr std::size_t kSetBytes = 64;
  template <int F, int V>
  static void load(const std::byte* w, __m256i (&codes)[V]) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Codes<WeightKind::Int4>::load<F, V>(w, codes);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) codes[v] = _mm256_shuffle_epi8(table, codes[v]);
  }
};

// out += scale of x * scale of w * (sum - zero point * sum of x) - offset * sum of x
template <WeightKind K, int R, int F, int V>
inline __attribute__((always_inline)) void add_span(const LinearTile& tile, const float* header,
                                                    const float* span,
                                                    const __m256i (&sums)[R][V]) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const __m256 scale = _mm256_set1_ps(span[r] * Codes<K>::kUnit);
    const __m256 zero = _mm256_set1_ps(-Codes<K>::kZeroPoint * Codes<K>::kUnit * span[R + r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* const out = tile.out + r * kPanelRows + (F + v) * 8;
      const __m256 product = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][v]), scale, zero);
      __m256 sum =
          _mm256_fmadd_ps(product, _mm256_load_ps(header + (F + v) * 8), _mm256_loadu_ps(out));
      if (tile.offsets) {
        const __m256 offsets = _mm256_load_ps(header + kPanelRows + (F + v) * 8);
        sum = _mm256_fnmadd_ps(offsets, _mm256_set1_ps(span[R + r]), sum);
      }
      _mm256_storeu_ps(out, sum);
    }
  }
}

template <int R, int V>
inline __attribute__((always_inline)) void clear(__m256i (&sums)[R][V]) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_si256();
  }
}

// One or two rows run through their weights, and four bits are few: what is fetched ahead fits into
// the nearest cache. Else that has too few places for what it waits for. (In brackets where it is
// used: _mm_prefetch may be a macro.)
template <WeightKind K, int R>
constexpr _mm_hint kPrefetchTo = R > 2 && K == WeightKind::Int8 ? _MM_HINT_T1 : _MM_HINT_T0;

// Fetches what the set at w is to fetch, once for all vectors of the panel.
template <WeightKind K, int R, int F>
inline __attribute__((always_inline)) void prefetch_set(const LinearTile& tile,
                                                        const std::byte* w) {
  if constexpr (F == 0) {
    const std::ptrdiff_t at = w - tile.w;
    _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + at, (kPrefetchTo<K, R>));
    if constexpr (Codes<K>::kSetBytes > 64) {
      _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + at, (kPrefetchTo<K, R>));
    }
  }
}

// Vectors F to F + V - 1 of the panel.
template <WeightKind K, int R, int F, int V>
void multiply(const LinearTile& tile) {
  const std::byte* w = tile.w;
  const auto* x = static_cast<const std::int32_t*>(tile.x);  // sets of four columns
  const float* span = tile.spans;
  const float* header = tile.scales;
  for (std::uint32_t first = 0; first < tile.num_columns; first += tile.span) {
    if (first != 0 && first % tile.group == 0) {
      w += tile.gap;
      header += tile.scales_step;
    }
    const std::uint32_t left = tile.num_columns - first;
    const std::uint32_t num_sets = (left < tile.span ? left : tile.span) / 4;
    __m256i sums[R][V];
    w = sum_span<K, R, F, V>(tile, w, x, num_sets, sums);
    add_span<K, R, F, V>(tile, header, span, sums);
    x += num_sets * R;
    span += 2 * R;
  }
}

template <WeightKind K, int R>
void tile_of(const LinearTile& tile) {
  if constexpr (R <= 2) {
    multiply<K, R, 0, 4>(tile);
  } else {
    multiply<K, R, 0, 2>(tile);
    multiply<K, R, 2, 2>(tile);
  }
}

}  // namespace
}  // namespace inferno::ops
