#include "ops/softcap/softcap.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/softcap/softcap_row.h"

namespace inferno::ops {

namespace {

// Below this many elements for each thread, waking a thread takes longer than the work.
constexpr std::size_t kElementsPerChunk = 8192;

void softcap_portable(const SoftcapRow& row) {
  for (std::size_t i = 0; i < row.size; ++i) {
    row.logits[i] = row.cap * std::tanh(row.scale * row.logits[i] / row.cap);
  }
}

void scale_only(const SoftcapRow& row) {
  for (std::size_t i = 0; i < row.size; ++i) row.logits[i] *= row.scale;
}

#if defined(INFERNO_X86_KERNELS)
constexpr VectorKernels<SoftcapKernel> kKernels{softcap_portable, softcap_avx2, softcap_avx512};
#else
constexpr VectorKernels<SoftcapKernel> kKernels{softcap_portable};
#endif

}  // namespace

void softcap(const OpContext& context, const SoftcapArgs& args) {
  if (args.cap == 0.0F && args.scale == 1.0F) return;
  const SoftcapKernel kernel = args.cap == 0.0F ? scale_only : kKernels.of(context.isa);
  const std::size_t num_chunks = (args.count + kElementsPerChunk - 1) / kElementsPerChunk;
  context.threads.parallel_for(
      static_cast<std::uint32_t>(num_chunks), [&](std::uint32_t chunk, std::uint32_t) {
        const std::size_t begin = chunk * kElementsPerChunk;
        kernel({args.logits + begin, std::min(kElementsPerChunk, args.count - begin), args.scale,
                args.cap});
      });
}

}  // namespace inferno::ops
