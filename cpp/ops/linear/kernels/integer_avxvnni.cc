// Integer matmul tiles for AVX2 with VNNI (AVX-VNNI): bytes of weights without sign times bytes of
// x with sign, four columns at once, as by AVX-512. A panel is four vectors; one or two rows take
// it at once, up to six rows one half after the other, with 12 of the 16 registers in sums.
#include <utility>

#include "ops/linear/kernels/integer_codes_avx2.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 6;
constexpr std::uint32_t kBlockColumns = 512;
// As by AVX2. (In brackets where it is used: _mm_prefetch may be a macro.)
template <WeightKind K, int R>
constexpr _mm_hint kPrefetchTo = R > 2 && K == WeightKind::Int8 ? _MM_HINT_T1 : _MM_HINT_T0;

template <>
struct Codes<WeightKind::Int8> {
  static constexpr float kZeroPoint = 128;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 128;
  template <int F, int V>
  static void load(const std::byte* w, __m256i (&codes)[V]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      codes[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(w) + F + v);
    }
  }
};

// sum += the products of four columns. In assembly, because GCC 12 keeps sums on the stack
// otherwise, though all have a register.
inline __attribute__((always_inline)) void add_products(__m256i& sum, __m256i codes, __m256i x) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
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
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_si256();
    }
    for (std::uint32_t set = 0; set < num_sets; ++set) {
      if constexpr (F == 0) {
        const std::ptrdiff_t at = w - tile.w;
        _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + at, (kPrefetchTo<K, R>));
        if constexpr (Codes<K>::kSetBytes > 64) {
          _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + at, (kPrefetchTo<K, R>));
        }
      }
      __m256i codes[V];
      Codes<K>::template load<F, V>(w, codes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m256i xr = _mm256_set1_epi32(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          add_products(sums[r][v], codes[v], xr);
        }
      }
      x += R;
      w += Codes<K>::kSetBytes;
    }
    add_span<K, R, F, V>(tile, header, span, sums);
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

template <WeightKind K, int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {
      kMaxRows,         kBlockColumns, sizeof(std::int8_t), true, {nullptr, tile_of<K, R + 1>...},
      pack_integers<4>, nullptr};
}

template <WeightKind K>
constexpr LinearKernels kKernels = kernels<K>(std::make_integer_sequence<int, kMaxRows>());

}  // namespace

const LinearKernels& integer_kernels_avxvnni(WeightKind kind) noexcept {
  if (kind == WeightKind::Int8) return kKernels<WeightKind::Int8>;
  return kind == WeightKind::Int4 ? kKernels<WeightKind::Int4> : kKernels<WeightKind::Mxfp4>;
}

}  // namespace inferno::ops
