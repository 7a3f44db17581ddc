// e^x on the lanes of simd_<isa>.h, which must be included before.
#pragma once

namespace inferno::ops {
namespace {

// Within 2 units in the last place of e^x for x from -87 to 88; beyond, the value at that end. A
// NaN stays one. x = n ln 2 + r with whole n and |r| <= ln 2 / 2; e^r by its Taylor series to r^7.
template <typename L>
typename L::Vec exp(typename L::Vec x) {
  x = L::smaller(L::set(88.0F), L::larger(L::set(-87.0F), x));
  const auto n = L::round(L::multiply(x, L::set(1.44269504F)));
  // ln 2 in two parts, the first with trailing zeros, so that n times it is exact.
  auto r = L::multiply_add(n, L::set(-0.693359375F), x);
  r = L::multiply_add(n, L::set(2.12194440e-4F), r);
  auto series = L::set(1.0F / 5040.0F);
  series = L::multiply_add(series, r, L::set(1.0F / 720.0F));
  series = L::multiply_add(series, r, L::set(1.0F / 120.0F));
  series = L::multiply_add(series, r, L::set(1.0F / 24.0F));
  series = L::multiply_add(series, r, L::set(1.0F / 6.0F));
  series = L::multiply_add(series, r, L::set(0.5F));
  series = L::multiply_add(series, r, L::set(1.0F));
  series = L::multiply_add(series, r, L::set(1.0F));
  return L::scale(series, n);
}

}  // namespace
}  // namespace inferno::ops
