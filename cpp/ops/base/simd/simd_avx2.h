// Eight floats at once. For files compiled for AVX2 only; the unnamed namespace keeps what is made
// of it out of sight of the linker, which could otherwise put it in place of baseline code.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace inferno::ops {
namespace {

struct Lanes {
  using Vec = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kRows = 2;  // rows of a register tile with four vectors each

  static Vec set(float value) { return _mm256_set1_ps(value); }
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
  // The first n lanes, the others 0; memory beyond them is not touched.
  static Vec load_first(const float* p, std::size_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store_first(float* p, Vec a, std::size_t n) { _mm256_maskstore_ps(p, mask(n), a); }
  static Vec from_bf16(const std::uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Vec from_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Codes of e4m3.
  static Vec from_fp8(const std::byte* p) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    // As f16 whose exponents are 8 too small; the sign, shifted in twice, is masked once.
    const __m128i upper = _mm_unpacklo_epi8(_mm_setzero_si128(), codes);
    const __m128i half = _mm_and_si128(_mm_srai_epi16(upper, 1), _mm_set1_epi16(-0x4080));
    const __m128i nan = _mm_set1_epi16(0x3f80);
    const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(half, nan), nan);
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(half, is_nan)), _mm256_set1_ps(256.0F));
  }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  // b where a is not a number.
  static Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  // The first n lanes of a, the others of b.
  static Vec first_of(Vec a, Vec b, std::size_t n) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask(n)));
  }
  // yes where a < b, else no.
  static Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  // a rounded to whole numbers.
  static Vec round(Vec a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^n for whole n; a and the result normal.
  static Vec scale(Vec a, Vec n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
  }
  static float sum(Vec a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
  static float largest(Vec a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
  }
  static float first(Vec a) { return _mm256_cvtss_f32(a); }

 private:
  static __m256i mask(std::size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
};

}  // namespace
}  // namespace inferno::ops
