// What becomes of a block's sums of floats, with the vectors of AVX-512. For files compiled for it
// only; the unnamed namespace keeps what is made of it out of sight of the linker.
#pragma once

#include <immintrin.h>

#include "ops/linear/kernels/linear_tile.h"

namespace inferno::ops {
namespace {

// out[at, at + 16) += the sums, times their rows' scales where the weights are quantized.
inline void add_to_out(const LinearTile& tile, std::size_t at, __m512 sums) {
  float* const out = tile.out + at;
  const __m512 before = _mm512_loadu_ps(out);
  if (tile.scales == nullptr) {
    _mm512_storeu_ps(out, _mm512_add_ps(before, sums));
  } else {
    const __m512 scales = _mm512_load_ps(tile.scales + at % kPanelRows);
    _mm512_storeu_ps(out, _mm512_fmadd_ps(sums, scales, before));
  }
}

}  // namespace
}  // namespace inferno::ops
