// silu_mul on the lanes of simd_<isa>.h, which must be included before.
#pragma once

#include "ops/base/simd_exp.h"

namespace inferno::ops {
namespace {

template <typename L>
typename L::Vec silu_mul_lanes(typename L::Vec gate, typename L::Vec up) {
  const auto one = L::set(1.0F);
  const auto negative = L::subtract(L::set(0.0F), gate);
  return L::multiply(L::divide(gate, L::add(one, exp<L>(negative))), up);
}

template <typename L>
void silu_mul_simd(const float* gate, const float* up, float* out, std::size_t size) {
  std::size_t i = 0;
  for (; i + L::kWidth <= size; i += L::kWidth) {
    L::store(out + i, silu_mul_lanes<L>(L::load(gate + i), L::load(up + i)));
  }
  const std::size_t left = size - i;
  if (left == 0) return;
  L::store_first(
      out + i, silu_mul_lanes<L>(L::load_first(gate + i, left), L::load_first(up + i, left)), left);
}

}  // namespace
}  // namespace inferno::ops
