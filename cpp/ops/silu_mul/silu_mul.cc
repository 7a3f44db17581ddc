#include "ops/silu_mul/silu_mul.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace inferno::ops {

// out = silu(gate) * up for `size` elements.
void silu_mul_avx2(const float* gate, const float* up, float* out, std::size_t size);
void silu_mul_avx512(const float* gate, const float* up, float* out, std::size_t size);

namespace {

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::size_t kElementsPerChunk = 8192;

void silu_mul_portable(const float* gate, const float* up, float* out, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) out[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
}

using SiluMulKernel = void (*)(const float* gate, const float* up, float* out, std::size_t size);

SiluMulKernel kernel_for(Isa isa) {
  switch (isa) {
#if defined(INFERNO_X86_KERNELS)
    case Isa::Avx512Bf16:
      return silu_mul_avx512;
    case Isa::Avx2:
      return silu_mul_avx2;
#endif
    default:
      return silu_mul_portable;
  }
}

}  // namespace

void silu_mul(const OpContext& context, const SiluMulArgs& args) {
  const std::size_t size = args.intermediate_size;
  const std::size_t pieces = (size + kElementsPerChunk - 1) / kElementsPerChunk;
  const auto num_chunks = static_cast<std::uint32_t>(pieces * args.num_tokens);
  const SiluMulKernel kernel = kernel_for(context.isa);
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t token = chunk / pieces;
    const std::size_t begin = chunk % pieces * kElementsPerChunk;
    const std::size_t length = std::min(kElementsPerChunk, size - begin);
    const float* gate = args.gate_up + token * 2 * size + begin;
    kernel(gate, gate + size, args.out + token * size + begin, length);
  });
}

}  // namespace inferno::ops
