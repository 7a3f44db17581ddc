#include "ops/glu/glu.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "ops/glu/glu_row.h"

namespace inferno::ops {

namespace {

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::size_t kElementsPerChunk = 8192;

float silu(float x) { return x / (1.0F + std::exp(-x)); }

float gelu_tanh(float x) { return x / (1.0F + std::exp(-x * (kGeluFirst + kGeluThird * (x * x)))); }

float clamped_silu(const Activation& activation, float gate, float up) {
  const float g = std::min(gate, activation.limit);
  const float u = std::clamp(up, -activation.limit, activation.limit);
  return g / (1.0F + std::exp(-(activation.alpha * g))) * (u + 1.0F);
}

void glu_portable(const Activation& activation, const GluRow& row) {
  const auto [gate, up, out, size] = row;
  switch (activation.kind) {
    case ActivationKind::Silu:
      for (std::size_t i = 0; i < size; ++i) out[i] = silu(gate[i]) * up[i];
      return;
    case ActivationKind::GeluTanh:
      for (std::size_t i = 0; i < size; ++i) out[i] = gelu_tanh(gate[i]) * up[i];
      return;
    case ActivationKind::ClampedSilu:
      for (std::size_t i = 0; i < size; ++i) out[i] = clamped_silu(activation, gate[i], up[i]);
      return;
  }
}

#if defined(INFERNO_X86_KERNELS)
constexpr VectorKernels<GluKernel> kKernels{glu_portable, glu_avx2, glu_avx512};
#else
constexpr VectorKernels<GluKernel> kKernels{glu_portable};
#endif

}  // namespace

void glu(const OpContext& context, const GluArgs& args) {
  const std::size_t size = args.intermediate_size;
  const std::size_t pieces = (size + kElementsPerChunk - 1) / kElementsPerChunk;
  const auto num_chunks = static_cast<std::uint32_t>(pieces * args.num_tokens);
  const GluKernel kernel = kKernels.of(context.isa);
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t token = chunk / pieces;
    const std::size_t begin = chunk % pieces * kElementsPerChunk;
    const std::size_t length = std::min(kElementsPerChunk, size - begin);
    const float* gate = args.gate_up + token * 2 * size + begin;
    kernel(args.activation, {gate, gate + size, args.out + token * size + begin, length});
  });
}

}  // namespace inferno::ops
