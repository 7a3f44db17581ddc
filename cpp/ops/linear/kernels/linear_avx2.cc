// Matmul tiles for AVX2, FMA and F16C. A panel is four vectors. One or two rows take the panel at
// once; up to six rows take one half after the other, with 12 of the 16 registers in sums.
#include <immintrin.h>

#include "ops/linear/kernels/linear_tile.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 6;
constexpr std::uint32_t kBlockColumns = 512;
// One or two rows run through their weights; with more, the nearest cache has too few places for
// what it waits for, and what the rows read would stand behind it.
template <int R>
constexpr _mm_hint kPrefetchTo = R <= 2 ? _MM_HINT_T0 : _MM_HINT_T1;

// Vector `v` of the panel at two neighbouring columns.
template <Dtype D>
struct WeightPair;

template <>
struct WeightPair<Dtype::BF16> {
  // Each 32 bits hold two columns: the first is the lower half.
  static __m256 first(const std::byte* w, int v) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w) + v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  }
  static __m256 second(const std::byte* w, int v) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w) + v);
    return _mm256_castsi256_ps(
        _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  }
};

template <>
struct WeightPair<Dtype::F16> {
  static __m256 first(const std::byte* w, int v) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(w) + v));
  }
  static __m256 second(const std::byte* w, int v) { return first(w + kPanelRows * 2, v); }
};

template <>
struct WeightPair<Dtype::F32> {
  static __m256 first(const std::byte* w, int v) {
    return _mm256_load_ps(reinterpret_cast<const float*>(w) + v * 8);
  }
  static __m256 second(const std::byte* w, int v) { return first(w + kPanelRows * 4, v); }
};

// sum += a * b. In assembly, because GCC 12 likes to put the new sum into b's register, and here,
// where all 16 are in use, pays for it with spills: a fifth of the speed.
inline __attribute__((always_inline)) void add_product(__m256& sum, __m256 a, __m256 b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// One column of the panel times R values of x.
template <int R, int V>
inline __attribute__((always_inline)) void add_products(__m256 (&sums)[R][V],
                                                        const __m256 (&column)[V], const float* x) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const __m256 xr = _mm256_broadcast_ss(x + r);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) add_product(sums[r][v], column[v], xr);
  }
}

// Vectors F to F + V - 1 of the panel.
template <Dtype D, int R, int F, int V>
void multiply(const LinearTile& tile) {
  constexpr std::size_t kPairBytes = 2 * kPanelRows * dtype_bytes(D);
  __m256 sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_ps();
  }
  const auto* x = static_cast<const float*>(tile.x);
  const std::byte* w = tile.w;
  const char* prefetch0 = reinterpret_cast<const char*>(tile.prefetch[0]);
  const char* prefetch1 = reinterpret_cast<const char*>(tile.prefetch[1]);
  const std::size_t num_pairs = tile.num_columns / 2;
  for (std::size_t pair = 0; pair < num_pairs; ++pair) {
    if constexpr (F == 0) {
      _mm_prefetch(prefetch0 + pair * kPairBytes, kPrefetchTo<R>);
      _mm_prefetch(prefetch1 + pair * kPairBytes, kPrefetchTo<R>);
    }
    __m256 column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = WeightPair<D>::first(w, F + v);
    add_products<R, V>(sums, column, x);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = WeightPair<D>::second(w, F + v);
    add_products<R, V>(sums, column, x + R);
    x += 2 * R;
    w += kPairBytes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* out = tile.out + r * kPanelRows + (F + v) * 8;
      const __m256 before = _mm256_loadu_ps(out);
      if (tile.scales == nullptr) {
        _mm256_storeu_ps(out, _mm256_add_ps(before, sums[r][v]));
      } else {
        const __m256 scales = _mm256_load_ps(tile.scales + (F + v) * 8);
        _mm256_storeu_ps(out, _mm256_fmadd_ps(sums[r][v], scales, before));
      }
    }
  }
}

template <Dtype D, int R>
void tile_of(const LinearTile& tile) {
  if constexpr (R <= 2) {
    multiply<D, R, 0, 4>(tile);
  } else {
    multiply<D, R, 0, 2>(tile);
    multiply<D, R, 2, 2>(tile);
  }
}

// 16 codes of e4m3 as bf16, exactly.
__m256i widened(__m128i codes) {
  // The eight multiples of 2^-9 below the normal numbers, by their two bytes.
  const __m256i small = _mm256_broadcastsi128_si256(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m256i words = _mm256_cvtepu8_epi16(codes);
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), words), 8);
  // The exponent's bias goes from 7 to 127.
  const __m256i normal =
      _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(120 << 7));
  const __m256i bytes = _mm256_add_epi16(_mm256_mullo_epi16(magnitude, _mm256_set1_epi16(0x0202)),
                                         _mm256_set1_epi16(0x0100));
  const __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude);
  return _mm256_or_si256(sign,
                         _mm256_blendv_epi8(normal, _mm256_shuffle_epi8(small, bytes), is_small));
}

void widen_fp8(const LinearTile& block, std::byte* out) {
  constexpr std::size_t kPrefetchBytes = 4096;
  auto* const to = reinterpret_cast<__m256i*>(out);
  for (std::size_t pair = 0; pair < block.num_columns / 2; ++pair) {
    const std::byte* from = block.w + pair * 2 * kPanelRows;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
    const auto* const quarters = reinterpret_cast<const __m128i*>(from);
    for (int i = 0; i < 4; ++i) to[4 * pair + i] = widened(_mm_load_si128(quarters + i));
  }
}

void pack_float(const TileRows& rows, void* packed) {
  const auto [x, num_columns, num_rows, span] = rows;
  auto* out = static_cast<float*>(packed);
  for (std::uint32_t r = 0; r < num_rows; ++r) {
    const float* row = x + std::size_t{r} * num_columns;
    for (std::uint32_t k = 0; k < num_columns; ++k) out[std::size_t{k} * num_rows + r] = row[k];
    if (num_columns % 2 != 0) out[std::size_t{num_columns} * num_rows + r] = 0.0F;
  }
}

// Of fp8: fewer columns, so that what was widened stays in the nearest cache.
template <Dtype D>
constexpr LinearKernels kernels(std::uint32_t block_columns, decltype(LinearKernels::widen) widen) {
  return {kMaxRows,
          block_columns,
          sizeof(float),
          false,
          {nullptr, tile_of<D, 1>, tile_of<D, 2>, tile_of<D, 3>, tile_of<D, 4>, tile_of<D, 5>,
           tile_of<D, 6>},
          pack_float,
          widen};
}

constexpr LinearKernels kF32Kernels = kernels<Dtype::F32>(kBlockColumns, nullptr);
constexpr LinearKernels kF16Kernels = kernels<Dtype::F16>(kBlockColumns, nullptr);
constexpr LinearKernels kBf16Kernels = kernels<Dtype::BF16>(kBlockColumns, nullptr);
constexpr LinearKernels kFp8Kernels = kernels<Dtype::BF16>(256, widen_fp8);

}  // namespace

const LinearKernels& linear_kernels_avx2(WeightKind kind) noexcept {
  switch (kind) {
    case WeightKind::BF16:
      return kBf16Kernels;
    case WeightKind::Fp8:
      return kFp8Kernels;
    case WeightKind::F16:
      return kF16Kernels;
    default:
      return kF32Kernels;
  }
}

}  // namespace inferno::ops
