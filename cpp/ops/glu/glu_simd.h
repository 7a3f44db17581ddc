// glu on the lanes of simd_<isa>.h, which must be included before.
#pragma once

#include "ops/base/simd/simd_exp.h"
#include "ops/glu/glu_row.h"

namespace inferno::ops {
namespace {

// value * sigmoid(-negative).
template <typename L>
typename L::Vec gated(typename L::Vec value, typename L::Vec negative) {
  return L::divide(value, L::add(L::set(1.0F), exp<L>(negative)));
}

template <typename L>
struct Silu {
  typename L::Vec operator()(typename L::Vec gate, typename L::Vec up) const {
    return L::multiply(gated<L>(gate, L::subtract(L::set(0.0F), gate)), up);
  }
};

template <typename L>
struct GeluTanh {
  typename L::Vec operator()(typename L::Vec gate, typename L::Vec up) const {
    const auto slope =
        L::multiply_add(L::multiply(gate, gate), L::set(-kGeluThird), L::set(-kGeluFirst));
    return L::multiply(gated<L>(gate, L::multiply(gate, slope)), up);
  }
};

template <typename L>
struct ClampedSilu {
  typename L::Vec alpha;
  typename L::Vec limit;

  explicit ClampedSilu(const Activation& activation)
      : alpha(L::set(activation.alpha)), limit(L::set(activation.limit)) {}

  // A NaN stays one: the second operand is kept where one is no number.
  typename L::Vec operator()(typename L::Vec gate, typename L::Vec up) const {
    const auto zero = L::set(0.0F);
    gate = L::smaller(limit, gate);
    up = L::larger(L::subtract(zero, limit), L::smaller(limit, up));
    const auto negative = L::subtract(zero, L::multiply(alpha, gate));
    return L::multiply(gated<L>(gate, negative), L::add(up, L::set(1.0F)));
  }
};

template <typename L, typename Lanewise>
void for_each_vector(const GluRow& row, Lanewise activate) {
  std::size_t i = 0;
  for (; i + L::kWidth <= row.size; i += L::kWidth) {
    L::store(row.out + i, activate(L::load(row.gate + i), L::load(row.up + i)));
  }
  const std::size_t left = row.size - i;
  if (left == 0) return;
  L::store_first(row.out + i,
                 activate(L::load_first(row.gate + i, left), L::load_first(row.up + i, left)),
                 left);
}

template <typename L>
void glu_simd(const Activation& activation, const GluRow& row) {
  switch (activation.kind) {
    case ActivationKind::Silu:
      return for_each_vector<L>(row, Silu<L>());
    case ActivationKind::GeluTanh:
      return for_each_vector<L>(row, GeluTanh<L>());
    case ActivationKind::ClampedSilu:
      return for_each_vector<L>(row, ClampedSilu<L>(activation));
  }
}

}  // namespace
}  // namespace inferno::ops
