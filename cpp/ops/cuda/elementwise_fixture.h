// For the tests of the ops around products and attention: element types, the error of one rounding,
// a norm in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda::test {

using ops::test::Random;

inline constexpr Dtype kElements[] = {Dtype::BF16, Dtype::F16};

// Half a unit in the last place of an element, of which a float's errors may use a little more.
inline double element_error(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1.02p-8 : 0x1.02p-11; }

// Of a sum's terms' magnitudes, a float's errors in them.
inline constexpr double kFloatError = 0x1p-20;

// `value` is `expected`, rounded once; `magnitude`: of the terms of which it is the sum.
inline bool near(float value, double expected, double magnitude, Dtype dtype) {
  const double allowed = element_error(dtype) * std::abs(expected) + kFloatError * magnitude + 1e-7;
  return std::abs(value - expected) <= allowed;
}
inline bool near(float value, double expected, Dtype dtype) {
  return near(value, expected, std::abs(expected), dtype);
}

inline std::vector<std::uint32_t> integers(Random& random, std::size_t count, std::uint32_t high) {
  std::vector<std::uint32_t> values(count);
  for (auto& value : values) value = random.integer(0, high);
  return values;
}

// rms_norm of each row of weight.size() values; weights of 1 are none.
inline std::vector<double> norm_of(std::span<const float> x, std::span<const float> weight,
                                   double eps) {
  std::vector<double> out(x.size());
  for (std::size_t row = 0; row < x.size(); row += weight.size()) {
    double squares = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += double{x[row + i]} * x[row + i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(weight.size()) + eps);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      out[row + i] = x[row + i] * scale * weight[i];
    }
  }
  return out;
}

// How a test's rows are normalised.
enum class Norm { None, Weighted, Unweighted };
inline constexpr Norm kNorms[] = {Norm::None, Norm::Weighted, Norm::Unweighted};
inline constexpr float kNormEps = 1e-5F;

// A norm of random weights, on the host and on the device.
class TestNorm {
 public:
  TestNorm(Random& random, Norm norm, std::uint32_t width)
      : norm_(norm), weight_(random.normals(width)), device_weight_(weight_) {
    if (norm == Norm::Unweighted) weight_.assign(width, 1.0F);
  }

  RowNorm device() const {
    return {norm_ != Norm::None, norm_ == Norm::Weighted ? device_weight_.data() : nullptr,
            kNormEps};
  }
  std::vector<double> operator()(std::span<const float> x) const {
    if (norm_ == Norm::None) return {x.begin(), x.end()};
    return norm_of(x, weight_, kNormEps);
  }

 private:
  Norm norm_;
  std::vector<float> weight_;
  DeviceBuffer<float> device_weight_;
};

}  // namespace inferno::ops::cuda::test
