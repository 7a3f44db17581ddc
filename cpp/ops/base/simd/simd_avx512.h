// Sixteen floats at once. For files compiled for AVX-512 only; the unnamed namespace keeps what is
// made of it out of sight of the linker, which could otherwise put it in place of baseline code.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace inferno::ops {
namespace {

struct Lanes {
  using Vec = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kRows = 6;  // rows of a register tile with four vectors each

  static Vec set(float value) { return _mm512_set1_ps(value); }
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
  // The first n lanes, the others 0; memory beyond them is not touched.
  static Vec load_first(const float* p, std::size_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store_first(float* p, Vec a, std::size_t n) { _mm512_mask_storeu_ps(p, mask(n), a); }
  static Vec from_bf16(const std::uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Vec from_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Codes of e4m3.
  static Vec from_fp8(const std::byte* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    // As f16 whose exponents are 8 too small; the sign, shifted in twice, is masked once.
    const __m256i upper = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
    const __m256i half = _mm256_and_si256(_mm256_srai_epi16(upper, 1), _mm256_set1_epi16(-0x4080));
    const __m256i nan = _mm256_set1_epi16(0x3f80);
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, nan), nan);
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(half, is_nan)), _mm512_set1_ps(256.0F));
  }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  // b where a is not a number.
  static Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  // The first n lanes of a, the others of b.
  static Vec first_of(Vec a, Vec b, std::size_t n) { return _mm512_mask_blend_ps(mask(n), b, a); }
  // yes where a < b, else no.
  static Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  // a rounded to whole numbers.
  static Vec round(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^n for whole n.
  static Vec scale(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
  static __m256 upper_half(Vec a) {
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
  }
  static float sum(Vec a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), upper_half(a));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static float largest(Vec a) {
    const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), upper_half(a));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static float first(Vec a) { return _mm512_cvtss_f32(a); }

 private:
  static __mmask16 mask(std::size_t n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffU : (1U << n) - 1U);
  }
};

}  // namespace
}  // namespace inferno::ops
