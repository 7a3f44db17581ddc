// How many rows and bytes the tile registers of AMX have. For files compiled for AMX only.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace inferno::ops {
namespace {

struct TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t line_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, std::uint32_t num_rows, int bytes) {
    rows[tile] = static_cast<std::uint8_t>(num_rows);
    line_bytes[tile] = static_cast<std::uint16_t>(num_rows == 0 ? 0 : bytes);
  }
  // All tiles become zero.
  void load() const {
    __asm__ volatile("" ::"r"(this) : "memory");  // the intrinsic does not say that it reads
    _tile_loadconfig(this);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace inferno::ops
