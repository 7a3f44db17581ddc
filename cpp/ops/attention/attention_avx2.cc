#include "ops/base/simd/simd_avx2.h"
// The lanes come first.
#include "ops/attention/attention_simd.h"

namespace inferno::ops {

void attention_kernel_avx2(const KvLayer& layer, const AttentionTask& task, float* scratch) {
  AttentionRows<Lanes>(layer, task, scratch).run();
}

}  // namespace inferno::ops
