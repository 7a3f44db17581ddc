#include "ops/base/simd/simd_avx512.h"
// The lanes come first.
#include "ops/glu/glu_simd.h"

namespace inferno::ops {

void glu_avx512(const Activation& activation, const GluRow& row) {
  glu_simd<Lanes>(activation, row);
}

}  // namespace inferno::ops
