// Rows of x as integers, one to a byte, with a scale for each span of columns. For files compiled
// for one instruction set only, whose vectors the compiler takes; the unnamed namespace keeps what
// is made of it out of sight of the linker.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "ops/linear/kernels/linear_tile.h"

namespace inferno::ops {
namespace {

// A span of a row: codes [kSpanColumns], those beyond `length` 0; answers the scale, which is NaN
// where a value is no number or infinite. The largest magnitude becomes 127.
inline float codes_of_span(const float* x, std::uint32_t length, std::int8_t* codes) {
  float values[kSpanColumns] = {};
  std::memcpy(values, x, length * sizeof(float));
  float largest = 0;
  float nothing = 0;  // 0 * each: NaN if one is no number or infinite
  for (const float value : values) {
    largest = std::fabs(value) > largest ? std::fabs(value) : largest;
    nothing += value * 0.0F;
  }
  const float inverse = largest > 1e-30F && nothing == 0 ? 127 / largest : 0;  // finite
  constexpr float kMagic = 0x1.8p23F;  // rounds to the nearest whole number, even of two
  for (std::uint32_t i = 0; i < kSpanColumns; ++i) {
    const float rounded = values[i] * inverse + kMagic;
    std::int32_t bits;
    std::memcpy(&bits, &rounded, sizeof(bits));
    codes[i] = static_cast<std::int8_t>(bits);
  }
  return nothing == 0 ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
}

inline std::int32_t sum_of(const std::int8_t* codes) {
  std::int32_t sum = 0;
  for (std::uint32_t i = 0; i < kSpanColumns; ++i) sum += codes[i];
  return sum;
}

// Bytes [k / C][row][k % C], and after them floats [spans][2][row].
template <int C>
void pack_integers(const TileRows& rows, void* packed) {
  const std::uint32_t num_columns = (rows.num_columns + C - 1) / C * C;
  auto* const lines = static_cast<std::byte*>(packed);
  auto* const spans = reinterpret_cast<float*>(lines + std::size_t{num_columns} * rows.num_rows);
  for (std::uint32_t r = 0; r < rows.num_rows; ++r) {
    const float* row = rows.x + std::size_t{r} * rows.num_columns;
    for (std::uint32_t first = 0; first < rows.num_columns; first += rows.span) {
      const std::uint32_t there = rows.num_columns - first;
      std::int8_t codes[kSpanColumns];
      const float scale = codes_of_span(row + first, there < rows.span ? there : rows.span, codes);
      float* const span = spans + first / rows.span * 2 * rows.num_rows + r;
      span[0] = scale;
      span[rows.num_rows] = scale * static_cast<float>(sum_of(codes));
      const std::uint32_t padded = num_columns - first;
      const std::uint32_t count = padded < rows.span ? padded : rows.span;
      for (std::uint32_t k = 0; k < count; k += C) {
        std::memcpy(lines + (std::size_t{(first + k) / C} * rows.num_rows + r) * C, codes + k, C);
      }
    }
  }
}

}  // namespace
}  // namespace inferno::ops
