// tanh on the lanes of simd_<isa>.h, which must be included before.
#pragma once

#include "ops/base/simd/simd_exp.h"

namespace inferno::ops {
namespace {

// Within 3 units in the last place of tanh x everywhere; a NaN stays one. Near 0 by the polynomial
// of Moshier's Cephes (tanhf), as the other form cancels there.
template <typename L>
typename L::Vec tanh(typename L::Vec x) {
  const auto square = L::multiply(x, x);
  auto near = L::set(-5.70498872745e-3F);
  near = L::multiply_add(near, square, L::set(2.06390887954e-2F));
  near = L::multiply_add(near, square, L::set(-5.37397155531e-2F));
  near = L::multiply_add(near, square, L::set(1.33314422036e-1F));
  near = L::multiply_add(near, square, L::set(-3.33332819422e-1F));
  near = L::multiply_add(L::multiply(near, square), x, x);
  const auto one = L::set(1.0F);
  const auto above_one = L::add(exp<L>(L::add(x, x)), one);
  const auto far = L::subtract(one, L::divide(L::set(2.0F), above_one));
  return L::where_less(square, L::set(0.625F * 0.625F), near, far);
}

}  // namespace
}  // namespace inferno::ops
