// The kernels of each kind of codes, for files that define tile_of: integer rows of x, four columns
// a set, times a block of weights.
#pragma once

#include <utility>

#include "ops/linear/kernels/integer_rows.h"

namespace inferno::ops {
namespace {

inline constexpr std::uint32_t kBlockColumns = 512;

template <WeightKind K, int R>
void tile_of(const LinearTile& tile);

template <WeightKind K, int... R>
constexpr LinearKernels kernels(std::integer_sequence<int, R...>) {
  return {
      sizeof...(R),     kBlockColumns, sizeof(std::int8_t), true, {nullptr, tile_of<K, R + 1>...},
      pack_integers<4>, nullptr};
}

template <WeightKind K, int MaxRows>
constexpr LinearKernels kKernels = kernels<K>(std::make_integer_sequence<int, MaxRows>());

template <int MaxRows>
const LinearKernels& kernels_of(WeightKind kind) noexcept {
  if (kind == WeightKind::Int8) return kKernels<WeightKind::Int8, MaxRows>;
  return kind == WeightKind::Int4 ? kKernels<WeightKind::Int4, MaxRows>
                                  : kKernels<WeightKind::Mxfp4, MaxRows>;
}

}  // namespace
}  // namespace inferno::ops
