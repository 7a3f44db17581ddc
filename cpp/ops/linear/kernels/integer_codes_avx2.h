// Codes of four bits as bytes without sign, and what a span's sums become, with the vectors of
// AVX2. For files compiled for it only; the unnamed namespace keeps what is made of it out of sight
// of the linker.
#pragma once

#include <immintrin.h>

#include "ops/linear/kernels/integer_rows.h"

namespace inferno::ops {
namespace {

// Vectors of eight rows, F and up, at a set of four columns. Int8 is each instruction set's own.
template <WeightKind K>
struct Codes;

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

}  // namespace
}  // namespace inferno::ops
