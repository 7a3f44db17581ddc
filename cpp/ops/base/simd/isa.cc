#include "ops/base/simd/isa.h"

namespace inferno::ops {

bool isa_available(Isa isa) noexcept {
#if defined(INFERNO_X86_KERNELS)
  // These ask cpuid and xgetbv, so a register file that the system does not save counts as absent.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::Portable:
      return true;
    case Isa::Avx2:
      return avx2;
    case Isa::Avx512Bf16:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == Isa::Portable;
#endif
}

Isa best_isa() noexcept {
  if (isa_available(Isa::Avx512Bf16)) return Isa::Avx512Bf16;
  if (isa_available(Isa::Avx2)) return Isa::Avx2;
  return Isa::Portable;
}

const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::Portable:
      return "portable";
    case Isa::Avx2:
      return "avx2";
    case Isa::Avx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

}  // namespace inferno::ops
