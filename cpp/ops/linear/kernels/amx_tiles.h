// The tile registers of AMX as linear uses them: sums of up to 32 rows of x and one panel. For
// files compiled for AMX only; the unnamed namespace keeps what is made of it out of sight of the
// linker.
//   tmm0, tmm1  sums of rows 0 to 15, of the panel's first and last 16 outputs
//   tmm2, tmm3  the same of rows 16 to 31
//   tmm4, tmm5  x: rows 0 to 15 and 16 to 31
//   tmm6, tmm7  weights: the panel's first and last 16 outputs, four bytes of columns in a row
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "ops/base/simd/tile_config.h"
#include "ops/linear/kernels/linear_tile.h"

namespace inferno::ops {
namespace {

inline constexpr std::uint32_t kMaxRows = 32;  // of x
inline constexpr int kTileRows = 16;
inline constexpr int kTileLine = 64;                                   // bytes of a tile's row
inline constexpr std::size_t kSetBytes = kPanelRows * 4;               // of a panel
inline constexpr std::size_t kPanelTileBytes = kTileRows * kSetBytes;  // tmm6 and tmm7
inline constexpr std::size_t kSumsStride = kPanelRows * 4;             // bytes of a row of sums

// The intrinsics that read memory do not say so to the compiler.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Tiles for up to max_rows rows of x (fewer may use them: what a lower tile has too much is not
// looked at) and S sets of columns, four bytes each. Takes some hundred cycles.
template <int S>
void begin_tiles(std::uint32_t max_rows) {
  const std::uint32_t upper = max_rows < 16 ? max_rows : 16;
  const std::uint32_t lower = max_rows - upper;
  TileConfig config;
  config.set(0, upper, kTileLine);
  config.set(1, upper, kTileLine);
  config.set(2, lower, kTileLine);
  config.set(3, lower, kTileLine);
  config.set(4, upper, S * 4);
  config.set(5, lower, S * 4);
  config.set(6, S, kTileLine);
  config.set(7, S, kTileLine);
  config.load();
}

inline void end_tiles() { _tile_release(); }

template <int R>
void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (R > kTileRows) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// x: [R] lines of line_bytes
template <int R>
void load_x(const std::byte* x, std::size_t line_bytes) {
  _tile_loadd(4, x, line_bytes);
  if constexpr (R > kTileRows) _tile_loadd(5, x + kTileRows * line_bytes, line_bytes);
}

inline void load_weights(const std::byte* w) {
  _tile_loadd(6, w, kSetBytes);
  _tile_loadd(7, w + kTileLine, kSetBytes);
}

// The last sets of a panel, fewer than a tile has: what lies behind them may not be ours.
inline void load_last_weights(const std::byte* w, std::size_t bytes) {
  alignas(kAlignment) std::byte padded[kPanelTileBytes] = {};
  std::memcpy(padded, w, bytes);
  finish_stores();
  load_weights(padded);
}

// sums: [R, kPanelRows] of four bytes each
template <int R>
void store_sums(void* sums) {
  auto* const bytes = static_cast<std::byte*>(sums);
  _tile_stored(0, bytes, kSumsStride);
  _tile_stored(1, bytes + kTileLine, kSumsStride);
  if constexpr (R > kTileRows) {
    _tile_stored(2, bytes + kTileRows * kSumsStride, kSumsStride);
    _tile_stored(3, bytes + kTileRows * kSumsStride + kTileLine, kSumsStride);
  }
}

// Fetches what the sets from `offset` on are to fetch.
inline void prefetch_sets(const LinearTile& tile, std::ptrdiff_t offset, int count) {
  for (int set = 0; set < count; ++set) {
    const std::ptrdiff_t at = offset + set * static_cast<std::ptrdiff_t>(kSetBytes);
    _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[0]) + at, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch[1]) + at, _MM_HINT_T0);
  }
}

// The sums of num_sets sets of columns, S of them at once. Products: the instructions for the upper
// and the lower rows. x: [num_sets / S][R][4 * S] bytes, padded with zeros; sums as store_sums has
// them.
template <typename Products, int R, int S>
void sum_products(const LinearTile& tile, const std::byte* w, const std::byte* x,
                  std::uint32_t num_sets, void* sums) {
  constexpr std::size_t kXLine = S * 4;
  const auto multiply = [] {
    Products::upper();
    if constexpr (R > kTileRows) Products::lower();
  };
  clear_sums<R>();
  for (std::uint32_t chunk = 0; chunk < num_sets / S; ++chunk) {
    load_x<R>(x, kXLine);
    load_weights(w);
    if (tile.prefetch[0] != tile.w) prefetch_sets(tile, w - tile.w, S);
    multiply();
    x += R * kXLine;
    w += S * kSetBytes;
  }
  if (const std::uint32_t left = num_sets % S; left != 0) {
    load_x<R>(x, kXLine);
    load_last_weights(w, left * kSetBytes);
    multiply();
  }
  store_sums<R>(sums);
}

}  // namespace
}  // namespace inferno::ops
