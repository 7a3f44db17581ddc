#include <immintrin.h>

#include "ops/base/simd/product_loops.h"
#include "ops/base/simd/repeat_sums.h"

namespace inferno::ops {

namespace {

constexpr int kSums = 12;  // more than are under way at once; factors have registers, too

}  // namespace

std::uint64_t multiply_bytes_avxvnni(std::uint32_t rounds) {
  const __m256i factor = _mm256_set1_epi8(1);
  return repeat_sums<__m256i, kSums>(rounds, 32, [&](__m256i sum) {
    asm("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sum) : "x"(factor));
    return sum;
  });
}

std::uint64_t multiply_bytes_avx512vnni(std::uint32_t rounds) {
  const __m256i factor = _mm256_set1_epi8(1);
  return repeat_sums<__m256i, kSums>(rounds, 32, [&](__m256i sum) {
    asm("%{evex%} vpdpbusd %1, %1, %0" : "+x"(sum) : "x"(factor));
    return sum;
  });
}

}  // namespace inferno::ops
