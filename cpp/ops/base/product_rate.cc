#include "ops/base/product_rate.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "ops/base/simd/product_loops.h"
#include "ops/base/thread_pool.h"

namespace inferno::ops {

namespace {

// Some 30 µs of a thread: the last chunk of a span, for which others may wait, is short beside it.
constexpr std::uint32_t kRounds = 4096;
constexpr std::uint32_t kChunksOfThread = 10;
constexpr int kSpans = 800;

#if defined(INFERNO_X86_KERNELS)
ProductLoop loop_of(Isa isa, Factors factors) {
  const bool tiles = isa == Isa::Amx;
  const bool narrow = isa < Isa::Avx512Bf16;
  if (isa == Isa::Portable) return nullptr;
  switch (factors) {
    case Factors::Floats:
      return narrow ? multiply_floats_avx2 : multiply_floats_avx512;
    case Factors::Bf16:
      if (narrow) return multiply_floats_avx2;
      return tiles ? multiply_bf16_amx : multiply_bf16_avx512;
    case Factors::Bytes:
      if (isa == Isa::AvxVnni) {
        return has_vex_vnni() ? multiply_bytes_avxvnni : multiply_bytes_avx512vnni;
      }
      if (narrow) return multiply_bytes_avx2;
      return tiles ? multiply_bytes_amx : multiply_bytes_avx512;
  }
  return nullptr;
}
#else
ProductLoop loop_of(Isa, Factors) { return nullptr; }
#endif

}  // namespace

double measure_product_rate(Isa isa, Factors factors, std::uint32_t num_threads) {
  const ProductLoop loop = loop_of(isa, factors);
  if (loop == nullptr || !isa_available(isa) || num_threads == 0) {
    throw std::invalid_argument(
        "other: measure_product_rate: expected an instruction set of this machine, 1 thread");
  }
  ThreadPool threads(num_threads);
  const std::uint32_t num_chunks = num_threads * kChunksOfThread;
  double best = 0.0;
  for (int span = 0; span < kSpans; ++span) {
    std::atomic<std::uint64_t> products{0};
    const auto start = std::chrono::steady_clock::now();
    threads.parallel_for(num_chunks,
                         [&](std::uint32_t, std::uint32_t) { products += loop(kRounds); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(products) / elapsed.count());
  }
  return best;
}

}  // namespace inferno::ops
