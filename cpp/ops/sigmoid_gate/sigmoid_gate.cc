#include "ops/sigmoid_gate/sigmoid_gate.h"

#include <cmath>
#include <cstddef>

#include "ops/base/for_each_row.h"
#include "ops/sigmoid_gate/sigmoid_gate_row.h"

namespace inferno::ops {
namespace {

void sigmoid_gate_portable(const SigmoidGateRow& row) {
  for (std::size_t i = 0; i < row.size; ++i) row.x[i] /= 1.0F + std::exp(-row.gates[i]);
}

#if defined(INFERNO_X86_KERNELS)
constexpr VectorKernels<SigmoidGateKernel> kKernels{sigmoid_gate_portable, sigmoid_gate_avx2,
                                                    sigmoid_gate_avx512};
#else
constexpr VectorKernels<SigmoidGateKernel> kKernels{sigmoid_gate_portable};
#endif

}  // namespace

void sigmoid_gate(const OpContext& context, const SigmoidGateArgs& args) {
  const SigmoidGateKernel kernel = kKernels.of(context.isa);
  const std::size_t row_size = std::size_t{args.num_gates} * args.width;
  for_each_row(context, args.num_tokens, row_size, [&](std::size_t token) {
    const float* gates = args.gates + token * args.num_gates;
    float* x = args.x + token * row_size;
    if (args.width == 1) return kernel({gates, x, row_size});
    for (std::uint32_t gate = 0; gate < args.num_gates; ++gate, x += args.width) {
      const float factor = 1.0F / (1.0F + std::exp(-gates[gate]));
      for (std::uint32_t i = 0; i < args.width; ++i) x[i] *= factor;
    }
  });
}

}  // namespace inferno::ops
