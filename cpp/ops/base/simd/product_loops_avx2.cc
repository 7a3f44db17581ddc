#include <immintrin.h>

#include "ops/base/simd/product_loops.h"
#include "ops/base/simd/repeat_sums.h"

namespace inferno::ops {

namespace {

constexpr int kSums = 12;  // more than are under way at once; factors have registers, too

}  // namespace

std::uint64_t multiply_floats_avx2(std::uint32_t rounds) {
  const __m256 factor = _mm256_set1_ps(0.5F);
  return repeat_sums<__m256, kSums>(
      rounds, 8, [&](__m256 sum) { return _mm256_fmadd_ps(factor, factor, sum); });
}

// Sums of two products in 16 bits, added to those of before.
std::uint64_t multiply_bytes_avx2(std::uint32_t rounds) {
  __m256i factor = _mm256_set1_epi8(1);
  return repeat_sums<__m256i, kSums>(rounds, 32, [&](__m256i sum) {
    __asm__ volatile("" : "+x"(factor));
    return _mm256_add_epi16(_mm256_maddubs_epi16(factor, factor), sum);
  });
}

}  // namespace inferno::ops
