// sigmoid_gate on the lanes of simd_<isa>.h, which must be included before.
#pragma once

#include "ops/base/simd/simd_exp.h"
#include "ops/sigmoid_gate/sigmoid_gate_row.h"

namespace inferno::ops {
namespace {

template <typename L>
void sigmoid_gate_simd(const SigmoidGateRow& row) {
  const auto gated = [](typename L::Vec gates, typename L::Vec x) {
    return L::divide(x, L::add(L::set(1.0F), exp<L>(L::subtract(L::set(0.0F), gates))));
  };
  std::size_t i = 0;
  for (; i + L::kWidth <= row.size; i += L::kWidth) {
    L::store(row.x + i, gated(L::load(row.gates + i), L::load(row.x + i)));
  }
  const std::size_t left = row.size - i;
  if (left == 0) return;
  L::store_first(row.x + i,
                 gated(L::load_first(row.gates + i, left), L::load_first(row.x + i, left)), left);
}

}  // namespace
}  // namespace inferno::ops
