#include <immintrin.h>

#include "ops/base/simd/product_loops.h"
#include "ops/base/simd/repeat_sums.h"

namespace inferno::ops {

namespace {

constexpr int kSums = 24;  // more than are under way at once; factors have registers, too

}  // namespace

std::uint64_t multiply_floats_avx512(std::uint32_t rounds) {
  const __m512 factor = _mm512_set1_ps(0.5F);
  return repeat_sums<__m512, kSums>(
      rounds, 16, [&](__m512 sum) { return _mm512_fmadd_ps(factor, factor, sum); });
}

std::uint64_t multiply_bf16_avx512(std::uint32_t rounds) {
  const auto factor = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f00));
  return repeat_sums<__m512, kSums>(
      rounds, 32, [&](__m512 sum) { return _mm512_dpbf16_ps(sum, factor, factor); });
}

std::uint64_t multiply_bytes_avx512(std::uint32_t rounds) {
  const __m512i factor = _mm512_set1_epi8(1);
  return repeat_sums<__m512i, kSums>(
      rounds, 64, [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, factor, factor); });
}

}  // namespace inferno::ops
