#include "ops/base/simd/simd_avx2.h"
// The lanes come first.
#include "ops/softcap/softcap_simd.h"

namespace inferno::ops {

void softcap_avx2(const SoftcapRow& row) { softcap_simd<Lanes>(row); }

}  // namespace inferno::ops
