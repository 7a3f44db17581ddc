// Matmul tiles for AVX-512. A panel is two vectors; up to 12 rows keep 24 of the 32 registers in
// sums.
#include "ops/linear/kernels/float_sums.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 12;
constexpr std::uint32_t kBlockColumns = 1024;
constexpr int kVectors = 2;

template <int R>
void clear(__m512 (&sums)[R][kVectors]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
}

template <int R>
void add_to_out(const LinearTile& tile, const __m512 (&sums)[R][kVectors]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) add_to_out(tile, r * kPanelRows + v * 16, sums[r][v]);
  }
}

// Into the second cache: what the nearest one waits for, it has few places for.
template <Dtype D>
void prefetch_lines(const LinearTile& tile, std::size_t pair) {
  const std::size_t offset = pair * 2 * kPanelRows * dtype_bytes(D);
  _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + offset, _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + offset, _MM_HINT_T1);
}

template <int R>
void tile_bf16(const LinearTile& tile) {
  __m512 sums[R][kVectors];
  clear<R>(sums);
  const auto* x = static_cast<const std::int32_t*>(tile.x);  // pairs of columns
  const auto* w = reinterpret_cast<const __m512i*>(tile.w);
  const std::size_t num_pairs = tile.num_columns / 2;
#pragma GCC unroll 2
  for (std::size_t pair = 0; pair < num_pairs; ++pair) {
    prefetch_lines<Dtype::BF16>(tile, pair);
    const auto w0 = reinterpret_cast<__m512bh>(_mm512_load_si512(w));
    const auto w1 = reinterpret_cast<__m512bh>(_mm512_load_si512(w + 1));
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const auto xr = reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[r]));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], w0, xr);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], w1, xr);
    }
    x += R;
    w += kVectors;
  }
  add_to_out<R>(tile, sums);
}

template <Dtype D>
__m512 load_weights(const std::byte* w) {
  if constexpr (D == Dtype::F32) return _mm512_load_ps(w);
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(w)));
}

// f32 and f16: products of floats.
template <Dtype D, int R>
void tile_float(const LinearTile& tile) {
  __m512 sums[R][kVectors];
  clear<R>(sums);
  const auto* x = static_cast<const float*>(tile.x);
  const std::byte* w = tile.w;
  constexpr std::size_t kVectorBytes = 16 * dtype_bytes(D);
  for (std::size_t pair = 0; pair < tile.num_columns / 2; ++pair) {
    prefetch_lines<D>(tile, pair);
#pragma GCC unroll 2
    for (int column = 0; column < 2; ++column) {
      const __m512 w0 = load_weights<D>(w);
      const __m512 w1 = load_weights<D>(w + kVectorBytes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const __m512 xr = _mm512_set1_ps(x[r]);
        sums[r][0] = _mm512_fmadd_ps(w0, xr, sums[r][0]);
        sums[r][1] = _mm512_fmadd_ps(w1, xr, sums[r][1]);
      }
      x += R;
      w += kVectors * kVectorBytes;
    }
  }
  add_to_out<R>(tile, sums);
}

// 32 codes of e4m3 as bf16, exactly.
__m512i widened(__m256i codes) {
  // The eight multiples of 2^-9 below the normal numbers.
  const __m512i small = _mm512_broadcast_i32x4(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m512i words = _mm512_cvtepu8_epi16(codes);
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x7f), words), 8);
  // The exponent's bias goes from 7 to 127.
  const __m512i normal =
      _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 is_small = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
  return _mm512_or_si512(sign, _mm512_mask_permutexvar_epi16(normal, is_small, magnitude, small));
}

void widen_fp8(const LinearTile& block, std::byte* out) {
  constexpr std::size_t kPrefetchBytes = 4096;
  auto* const to = reinterpret_cast<__m512i*>(out);
  for (std::size_t pair = 0; pair < block.num_columns / 2; ++pair) {
    const std::byte* from = block.w + pair * 2 * kPanelRows;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T1);
    const auto* const halves = reinterpret_cast<const __m256i*>(from);
    to[2 * pair] = widened(_mm256_load_si256(halves));
    to[2 * pair + 1] = widened(_mm256_load_si256(halves + 1));
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

void pack_bf16(const TileRows& rows, void* packed) {
  const auto [x, num_columns, num_rows, span] = rows;
  const std::uint32_t num_pairs = (num_columns + 1) / 2;
  for (std::uint32_t r = 0; r < num_rows; ++r) {
    const float* row = x + std::size_t{r} * num_columns;
    auto* out = static_cast<std::int32_t*>(packed) + r;
    for (std::uint32_t pair = 0; pair < num_pairs; pair += 8) {
      const std::uint32_t columns = num_columns - pair * 2;
      const auto mask = static_cast<__mmask16>(columns >= 16 ? 0xffffU : (1U << columns) - 1U);
      const __m512 values = _mm512_maskz_loadu_ps(mask, row + std::size_t{pair} * 2);
      alignas(32) std::int32_t pairs[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(pairs),
                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
      const std::uint32_t count = num_pairs - pair < 8 ? num_pairs - pair : 8;
      for (std::uint32_t i = 0; i < count; ++i) out[std::size_t{pair + i} * num_rows] = pairs[i];
    }
  }
}

template <Dtype D>
constexpr LinearKernels kFloatKernels{
    kMaxRows,
    kBlockColumns,
    sizeof(float),
    false,
    {nullptr, tile_float<D, 1>, tile_float<D, 2>, tile_float<D, 3>, tile_float<D, 4>,
     tile_float<D, 5>, tile_float<D, 6>, tile_float<D, 7>, tile_float<D, 8>, tile_float<D, 9>,
     tile_float<D, 10>, tile_float<D, 11>, tile_float<D, 12>},
    pack_float,
    nullptr};

// Of fp8: fewer columns, so that what was widened stays in the nearest cache.
constexpr LinearKernels bf16_kernels(std::uint32_t block_columns,
                                     decltype(LinearKernels::widen) widen) {
  return {
      kMaxRows,
      block_columns,
      sizeof(std::uint16_t),
      false,
      {nullptr, tile_bf16<1>, tile_bf16<2>, tile_bf16<3>, tile_bf16<4>, tile_bf16<5>, tile_bf16<6>,
       tile_bf16<7>, tile_bf16<8>, tile_bf16<9>, tile_bf16<10>, tile_bf16<11>, tile_bf16<12>},
      pack_bf16,
      widen};
}

constexpr LinearKernels kBf16Kernels = bf16_kernels(kBlockColumns, nullptr);
constexpr LinearKernels kFp8Kernels = bf16_kernels(256, widen_fp8);

}  // namespace

const LinearKernels& linear_kernels_avx512(WeightKind kind) noexcept {
  switch (kind) {
    case WeightKind::BF16:
      return kBf16Kernels;
    case WeightKind::Fp8:
      return kFp8Kernels;
    case WeightKind::F16:
      return kFloatKernels<Dtype::F16>;
    default:
      return kFloatKernels<Dtype::F32>;
  }
}

}  // namespace inferno::ops
