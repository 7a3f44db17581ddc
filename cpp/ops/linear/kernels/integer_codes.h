// Codes of weights as bytes without sign, and what a span's sums become, with the vectors of
// AVX-512. For files compiled for it only; the unnamed namespace keeps what is made of it out of
// sight of the linker.
#pragma once

#include <immintrin.h>

#include "ops/linear/kernels/integer_rows.h"

namespace inferno::ops {
namespace {

inline constexpr int kVectors = 2;  // of a panel

// What the bytes of a kind are made of: code + zero point, and the bytes of a set of four columns.
template <WeightKind K>
struct Codes;

template <>
struct Codes<WeightKind::Int8> {
  static constexpr float kZeroPoint = 128;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 128;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    codes[0] = _mm512_load_si512(w);
    codes[1] = _mm512_load_si512(w + 64);
  }
};

template <>
struct Codes<WeightKind::Int4> {
  static constexpr float kZeroPoint = 8;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 64;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i both = _mm512_load_si512(w);
    codes[0] = _mm512_and_si512(both, low);
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
};

// Twice the value plus 12.
template <>
struct Codes<WeightKind::Mxfp4> {
  static constexpr float kZeroPoint = 12;
  static constexpr float kUnit = 0.5F;
  static constexpr std::size_t kSetBytes = 64;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Codes<WeightKind::Int4>::load(w, codes);
    codes[0] = _mm512_shuffle_epi8(table, codes[0]);
    codes[1] = _mm512_shuffle_epi8(table, codes[1]);
  }
};

// A group's header.
struct GroupScales {
  __m512 scales[kVectors];
  __m512 offsets[kVectors];

  template <WeightKind K>
  static GroupScales load(const float* header, bool offsets) {
    GroupScales group;
    for (int v = 0; v < kVectors; ++v) {
      group.scales[v] =
          _mm512_mul_ps(_mm512_load_ps(header + v * 16), _mm512_set1_ps(Codes<K>::kUnit));
      group.offsets[v] =
          offsets ? _mm512_load_ps(header + kPanelRows + v * 16) : _mm512_setzero_ps();
    }
    return group;
  }
};

// x of one row in a span: its scale, and the sum of its values.
struct SpanOfRow {
  float scale;
  float sum;
};

// out += scale of x * scale of w * (sum - zero point * sum of x) - offset * sum of x
template <WeightKind K>
void add_row(const LinearTile& tile, const GroupScales& group, SpanOfRow span,
             const __m512i (&sums)[kVectors], float* out) {
  const __m512 scale = _mm512_set1_ps(span.scale);
  const __m512 zero = _mm512_set1_ps(-Codes<K>::kZeroPoint * span.sum);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m512 product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), scale, zero);
    __m512 sum = _mm512_fmadd_ps(product, group.scales[v], _mm512_loadu_ps(out + v * 16));
    if (tile.offsets) {
      sum = _mm512_fnmadd_ps(group.offsets[v], _mm512_set1_ps(span.sum), sum);
    }
    _mm512_storeu_ps(out + v * 16, sum);
  }
}

}  // namespace
}  // namespace inferno::ops
