#include "ops/base/simd/simd_avx512.h"
// The lanes come first.
#include "ops/softcap/softcap_simd.h"

namespace inferno::ops {

void softcap_avx512(const SoftcapRow& row) { softcap_simd<Lanes>(row); }

}  // namespace inferno::ops
