// Integer matmul tiles for AVX2 with VNNI: bytes of weights without sign times bytes of x with
// sign, four columns at once, as by AVX-512. Up to six rows, with 12 of the 16 registers in sums.
// The instruction has two encodings, of which a processor may have one: the file that includes this
// defines add_products.
#pragma once

#include "ops/linear/kernels/integer_tiles_avx2.h"

namespace inferno::ops {
namespace {

constexpr int kMaxRows = 6;

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
void add_products(__m256i& sum, __m256i codes, __m256i x);

template <WeightKind K, int R, int F, int V>
inline __attribute__((always_inline)) const std::byte* sum_span(const LinearTile& tile,
                                                                const std::byte* w,
                                                                const std::int32_t* x,
                                                                std::uint32_t num_sets,
                                                                __m256i (&sums)[R][V]) {
  clear(sums);
  for (std::uint32_t set = 0; set < num_sets; ++set) {
    prefetch_set<K, R, F>(tile, w);
    __m256i codes[V];
    Codes<K>::template load<F, V>(w, codes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256i xr = _mm256_set1_epi32(x[r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) add_products(sums[r][v], codes[v], xr);
    }
    x += R;
    w += Codes<K>::kSetBytes;
  }
  return w;
}

}  // namespace
}  // namespace inferno::ops
