// Integer matmul tiles for AVX2, by products of bytes without sign and bytes with sign that are
// added in pairs of 16 bits. Up to four rows.
#include "ops/linear/kernels/integer_tiles_avx2.h"

namespace inferno::ops {

namespace {

constexpr int kMaxRows = 4;

// |code| times x with the code's sign: at most 2 * 128 * 127 a pair, which leaves no room for a
// second one.
template <>
struct Codes<WeightKind::Int8> {
  static constexpr float kZeroPoint = 0;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 128;
  template <int F, int V>
  static void load(const std::byte* w, __m256i (&codes)[V]) {
    const __m256i sign = _mm256_set1_epi8(-128);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const auto* from = reinterpret_cast<const __m256i*>(w) + F + v;
      codes[v] = _mm256_xor_si256(_mm256_load_si256(from), sign);
    }
  }
};

// Sets of four columns whose pairs fit into 16 bits together; of four bits: 4 * 2 * 24 * 127 <
// 2^15.
template <WeightKind K>
constexpr std::uint32_t kSetsTogether = K == WeightKind::Int8 ? 1 : 4;

// Pairs of 16 bits as sums of 32.
inline __m256i added(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// In assembly, because GCC 12 keeps some sums on the stack otherwise, though all have a register.
inline __attribute__((always_inline)) void add_16(__m256i& sums, __m256i more) {
  asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(more));
}
inline __attribute__((always_inline)) void add_32(__m256i& sums, __m256i more) {
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(more));
}

// The products of one set: of Int8 as sums of 32 bits, else as pairs of 16.
template <WeightKind K, int R, int F, int V>
inline __attribute__((always_inline)) void add_set(const std::byte* w, const std::int32_t* x,
                                                   __m256i (&sums)[R][V]) {
  __m256i codes[V];
  Codes<K>::template load<F, V>(w, codes);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m256i xr = _mm256_set1_epi32(x[r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if constexpr (K == WeightKind::Int8) {
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes[v]), _mm256_sign_epi8(xr, codes[v]));
        add_32(sums[r][v], added(pairs));
      } else {
        add_16(sums[r][v], _mm256_maddubs_epi16(codes[v], xr));
      }
    }
  }
}

template <WeightKind K, int R, int F, int V>
inline __attribute__((always_inline)) const std::byte* sum_span(const LinearTile& tile,
                                                                const std::byte* w,
                                                                const std::int32_t* x,
                                                                std::uint32_t num_sets,
                                                                __m256i (&sums)[R][V]) {
  const auto add_next = [&](std::uint32_t set, __m256i(&to)[R][V]) {
    prefetch_set<K, R, F>(tile, w);
    add_set<K, R, F, V>(w, x + set * R, to);
    w += Codes<K>::kSetBytes;
  };
  clear(sums);
  if constexpr (kSetsTogether<K> == 1) {
    for (std::uint32_t set = 0; set < num_sets; ++set) add_next(set, sums);
    return w;
  }
  for (std::uint32_t begin = 0; begin < num_sets; begin += kSetsTogether<K>) {
    const std::uint32_t end =
        num_sets - begin < kSetsTogether<K> ? num_sets : begin + kSetsTogether<K>;
    __m256i pairs[R][V];
    clear(pairs);
    for (std::uint32_t set = begin; set < end; ++set) add_next(set, pairs);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sums[r][v] = _mm256_add_epi32(sums[r][v], added(pairs[r][v]));
      }
    }
  }
  return w;
}

}  // namespace

const LinearKernels& integer_kernels_avx2(WeightKind kind) noexcept {
  return kernels_of<kMaxRows>(kind);
}

}  // namespace inferno::ops
