// Integer matmul tiles for AVX-512 with VNNI: bytes of weights without sign times bytes of x with
// sign, four columns at once. A panel is two vectors; up to 12 rows keep 24 of the 32 registers in
// sums.
#include <immintrin.h>

#include <utility>

#include "ops/linear/integer_rows.h"

namespace inferno::ops {

namespace {

constexpr std::uint32_t kMaxRows = 12;
constexpr std::uint32_t kBlockColumns = 512;
constexpr int kVectors = 2;

// What the bytes of a kind are made of: code + zero point, and the bytes of a set of four columns.
template <WeightKind K>
struct Codes;

template <>
struct Codes<WeightKind::Int8> {
  static constexpr float kZeroPoint = 128;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 128;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    codes[0] = _mm512_load_si512(w);
    codes[1] = _mm512_load_si512(w + 64);
  }
};

template <>
struct Codes<WeightKind::Int4> {
  static constexpr float kZeroPoint = 8;
  static constexpr float kUnit = 1;
  static constexpr std::size_t kSetBytes = 64;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i both = _mm512_load_si512(w);
    codes[0] = _mm512_and_si512(both, low);
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
};

// Twice the value plus 12.
template <>
struct Codes<WeightKind::Mxfp4> {
  static constexpr float kZeroPoint = 12;
  static constexpr float kUnit = 0.5F;
  static constexpr std::size_t kSetBytes = 64;
  static void load(const std::byte* w, __m512i (&codes)[kVectors]) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Codes<WeightKind::Int4>::load(w, codes);
    codes[0] = _mm512_shuffle_epi8(table, codes[0]);
    codes[1] = _mm512_shuffle_epi8(table, codes[1]);
  }
};

struct GroupScales {
  __m512 scales[kVectors];
  __m512 offsets[kVectors];

  template <WeightKind K>
  static GroupScales load(const float* header, bool offsets) {
    GroupScales group;
    for (int v = 0; v < kVectors; ++v) {
      group.scales[v] =
          _mm512_mul_ps(_mm512_load_ps(header + v * 16), _mm512_set1_ps(Codes<K>::kUnit));
      group.offsets[v] =
          offsets ? _mm512_load_ps(header + kPanelRows + v * 16) : _mm512_setzero_ps();
    }
    return group;
  }
};

// out += scale of x * scale of w * (sum - zero point * sum of x) - offset * sum of x
template <WeightKind K, int R>
void add_span(const LinearTile& tile, const GroupScales& group, const float* span,
              const __m512i (&sums)[R][kVectors]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const __m512 scale = _mm512_set1_ps(span[r]);
    const __m512 zero = _mm512_set1_ps(-Codes<K>::kZeroPoint * span[R + r]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const out = tile.out + r * tile.out_stride + v * 16;
      const __m512 product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][v]), scale, zero);
      __m512 sum = _mm512_fmadd_ps(product, group.scales[v], _mm512_loadu_ps(out));
      if (tile.offsets) {
        sum = _mm512_fnmadd_ps(group.offsets[v], _mm512_set1_ps(span[R + r]), sum);
      }
      _mm512_storeu_ps(out, sum);
    }
  }
}

template <WeightKind K, int R>
void tile_of(const LinearTile& tile) {
  const std::byte* w = tile.w;
  const auto* x = static_cast<const std::int32_t*>(tile.x);  // sets of four columns
  const float* span = tile.spans;
  const std::size_t header_bytes = kPanelRows * sizeof(float) * (tile.offsets ? 2 : 1);
  GroupScales group{};
  if (tile.scales != nullptr) group = GroupScales::load<K>(tile.scales, tile.offsets);
  for (std::uint32_t first = 0; first < tile.num_columns; first += tile.span) {
    if (tile.scales == nullptr && first % tile.group == 0) {
      group = GroupScales::load<K>(reinterpret_cast<const float*>(w), tile.offsets);
      w += header_bytes;
    }
    const std::uint32_t left = tile.num_columns - first;
    const std::uint32_t num_sets = (left < tile.span ? left : tile.span) / 4;
    __m512i sums[R][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (std::uint32_t set = 0; set < num_sets; ++set) {
      const std::ptrdiff_t at = w - tile.w;
      _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + at, _MM_HINT_T0);
      if constexpr (Codes<K>::kSetBytes > 64) {
        _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + at, _MM_HINT_T0);
      }
      __m512i codes[kVectors];
      Codes<K>::load(w, codes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const __m512i xr = _mm512_set1_epi32(x[r]);
        sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], codes[0], xr);
        sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], codes[1], xr);
      }
      x += R;
      w += Codes<K>::kSetBytes;
    }
    add_span<K, R>(tile, group, span, sums);
    span += 2 * R;
  }
}

template <WeightKind K, int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {kMaxRows,      kBlockColumns, sizeof(std::int8_t), true, {nullptr, tile_of<K, R + 1>...},
          pack_integers, nullptr};
}

template <WeightKind K>
constexpr LinearKernels kKernels = kernels<K>(std::make_integer_sequence<int, kMaxRows>());

}  // namespace

const LinearKernels& integer_kernels_avx512(WeightKind kind) noexcept {
  if (kind == WeightKind::Int8) return kKernels<WeightKind::Int8>;
  return kind == WeightKind::Int4 ? kKernels<WeightKind::Int4> : kKernels<WeightKind::Mxfp4>;
}

}  // namespace inferno::ops
