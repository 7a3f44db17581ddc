// Tiles 0 to 3 are sums, 4 to 7 factors.
#include "ops/base/simd/product_loops.h"
#include "ops/base/simd/tile_config.h"

namespace inferno::ops {

namespace {

constexpr int kTiles = 8;
constexpr int kTileRows = 16;
constexpr int kTileLine = 64;  // bytes

// `multiply` makes four whole products of tiles with `products` each.
template <typename Multiply>
std::uint64_t repeat(std::uint32_t rounds, std::uint64_t products, Multiply multiply) {
  TileConfig config;
  for (int tile = 0; tile < kTiles; ++tile) config.set(tile, kTileRows, kTileLine);
  config.load();
  for (std::uint32_t round = 0; round < rounds; ++round) multiply();
  _tile_release();
  return std::uint64_t{rounds} * 4 * products;
}

}  // namespace

std::uint64_t multiply_bf16_amx(std::uint32_t rounds) {
  return repeat(rounds, std::uint64_t{kTileRows} * 16 * 32, [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  });
}

std::uint64_t multiply_bytes_amx(std::uint32_t rounds) {
  return repeat(rounds, std::uint64_t{kTileRows} * 16 * 64, [] {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  });
}

}  // namespace inferno::ops
