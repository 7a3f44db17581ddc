// softcap on the lanes of simd_<isa>.h, which must be included before.
#pragma once

#include "ops/base/simd/simd_tanh.h"
#include "ops/softcap/softcap_row.h"

namespace inferno::ops {
namespace {

template <typename L>
void softcap_simd(const SoftcapRow& row) {
  const auto scale = L::set(row.scale);
  const auto cap = L::set(row.cap);
  const auto capped = [&](typename L::Vec logits) {
    return L::multiply(cap, tanh<L>(L::divide(L::multiply(scale, logits), cap)));
  };
  std::size_t i = 0;
  for (; i + L::kWidth <= row.size; i += L::kWidth) {
    L::store(row.logits + i, capped(L::load(row.logits + i)));
  }
  const std::size_t left = row.size - i;
  if (left > 0) L::store_first(row.logits + i, capped(L::load_first(row.logits + i, left)), left);
}

}  // namespace
}  // namespace inferno::ops
