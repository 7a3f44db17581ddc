// Times linear beside the rates at which the memory is read and the cores multiply, all measured in
// this run; rates are of the best round, as the ceilings are of their best span, because other
// processes only ever slow one down.
//   linear_cpu_bench [isa: portable|avx2|avx_vnni|avx512_bf16|amx] [threads] [bf16|fp8|int8|int4 …]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include "ops/base/bandwidth.h"
#include "ops/base/product_rate.h"
#include "ops/linear/linear.h"

namespace {

using namespace inferno::ops;

struct Seconds {
  double best;
  double median;
};

Seconds time_rounds(int rounds, const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    run();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

// Huge pages, as the engine's pool takes them.
std::byte* reserve(std::size_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) std::exit(1);
  ::madvise(data, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(data);
}

// Copies of a matrix, together far larger than the caches, so that each product reads from memory.
struct Matrices {
  WeightShape shape;
  std::size_t bytes;
  std::size_t count;
  std::byte* data;

  explicit Matrices(const WeightShape& matrix)
      : shape(matrix),
        bytes(packed_bytes(matrix)),
        count(std::max<std::size_t>(1, (std::size_t{256} << 20) / bytes)),
        data(reserve(bytes * count)) {
    // As bf16 +-0.008 to 0.03, as codes and scales something finite.
    std::mt19937 random(1);
    auto* bits = reinterpret_cast<std::uint16_t*>(data);
    for (std::size_t i = 0; i < bytes * count / 2; ++i) {
      bits[i] = static_cast<std::uint16_t>((random() & 0x80ffU) | 0x3c00U);
    }
  }
  ~Matrices() { ::munmap(data, bytes * count); }
};

Factors factors_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::F32:
    case WeightKind::F16:
      return Factors::Floats;
    case WeightKind::BF16:
    case WeightKind::Fp8:
      return Factors::Bf16;
    default:
      return Factors::Bytes;
  }
}

struct Ceilings {
  double bandwidth;  // bytes per second
  double products;   // per second; infinite where they are not known
};

void time_shape(const OpContext& context, const WeightShape& shape, const Ceilings& ceilings) {
  const Matrices matrices(shape);
  for (const std::uint32_t rows : {1U, 2U, 4U, 8U, 16U, 32U, 128U, 512U}) {
    const std::vector<float> x(std::size_t{rows} * shape.num_columns, 0.5F);
    std::vector<float> out(std::size_t{rows} * shape.num_rows);
    std::size_t next = 0;
    const double products = 2.0 * rows * shape.num_rows * shape.num_columns;
    const int rounds = std::clamp(static_cast<int>(2e11 / products), 5, 50);
    const Seconds seconds = time_rounds(rounds, [&] {
      const std::byte* data = matrices.data + next * matrices.bytes;
      linear(context, {x.data(), rows, {data, shape}, nullptr, out.data(), false});
      next = (next + 1) % matrices.count;
    });
    const double bytes_per_second = static_cast<double>(matrices.bytes) / seconds.best;
    std::printf(
        "%s K=%-5u N=%-6u M=%-4u median %9.1f us, best %9.1f us: %6.1f GB/s, %5.1f %% of read "
        "bandwidth, %6.1f GFLOP/s, %5.1f %% of products\n",
        weight_kind_name(shape.format.kind), shape.num_columns, shape.num_rows, rows,
        seconds.median * 1e6, seconds.best * 1e6, bytes_per_second * 1e-9,
        100.0 * bytes_per_second / ceilings.bandwidth, products / seconds.best * 1e-9,
        100.0 * products / 2 / seconds.best / ceilings.products);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Isa isa = best_isa();
  for (const Isa candidate : kIsas) {
    if (argc > 1 && std::string_view(argv[1]) == isa_name(candidate)) isa = candidate;
  }
  if (!isa_available(isa)) {
    std::printf("this machine has no %s\n", isa_name(isa));
    return 1;
  }
  const auto num_threads = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 2);
  inferno::ThreadPool threads(num_threads);
  const std::size_t workspace_bytes = linear_workspace_bytes(512, 8192, num_threads);
  const OpContext context{threads, isa, {reserve(workspace_bytes), workspace_bytes}};
  const double bandwidth = measure_read_bandwidth(std::size_t{1} << 30, num_threads, 7);
  std::printf("%s, %u threads, read bandwidth %.1f GB/s\n", isa_name(isa), num_threads,
              bandwidth * 1e-9);
  const WeightFormat formats[] = {
      Dtype::BF16, {WeightKind::Fp8}, {WeightKind::Int8}, {WeightKind::Int4, 128}};
  for (const WeightFormat& format : formats) {
    const std::string_view name = weight_kind_name(format.kind);
    const bool wanted = argc <= 3 || std::any_of(argv + 3, argv + argc,
                                                 [&](const char* asked) { return name == asked; });
    if (!wanted) continue;
    Ceilings ceilings{bandwidth, std::numeric_limits<double>::infinity()};
    if (isa != Isa::Portable) {
      ceilings.products = measure_product_rate(isa, factors_of(format.kind), num_threads);
      std::printf("%.1f G products/s\n", ceilings.products * 1e-9);
    }
    for (const auto& [rows, columns] :
         {std::pair{2048U, 2048U}, {8192U, 2048U}, {2048U, 8192U}, {128256U, 2048U}}) {
      time_shape(context, {rows, columns, format}, ceilings);
    }
  }
  std::printf("read bandwidth afterwards %.1f GB/s\n",
              measure_read_bandwidth(std::size_t{1} << 30, num_threads, 7) * 1e-9);
  return 0;
}
