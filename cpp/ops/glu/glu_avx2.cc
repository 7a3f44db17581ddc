#include "ops/base/simd/simd_avx2.h"
// The lanes come first.
#include "ops/glu/glu_simd.h"

namespace inferno::ops {

void glu_avx2(const Activation& activation, const GluRow& row) { glu_simd<Lanes>(activation, row); }

}  // namespace inferno::ops
