// A run of neighbouring elements, as the kernels of every instruction set get it. Plain data, as in
// attention_task.h.
#pragma once

#include <cstddef>

#include "ops/glu/activation.h"

namespace inferno::ops {

// 2 * sqrt(2 / pi), and 0.044715 times it.
inline constexpr float kGeluFirst = 1.5957691216F;
inline constexpr float kGeluThird = 0.0713548163F;

struct GluRow {
  const float* gate;
  const float* up;
  float* out;
  std::size_t size;
};

using GluKernel = void (*)(const Activation& activation, const GluRow& row);

void glu_avx2(const Activation& activation, const GluRow& row);
void glu_avx512(const Activation& activation, const GluRow& row);

}  // namespace inferno::ops
