// Times the memory pool of a GPU: taking one range and giving it back, and the ranges of a batch.
// One reservation is made before, so no call reaches the driver.
//   memory_bench
#include <chrono>
#include <cstdio>
#include <vector>

#include "engine/cuda/cuda_memory.h"
#include "engine/memory/memory_pool.h"
#include "lab/support/gpu_bench.h"

namespace inferno::lab {
namespace {

constexpr std::uint64_t kPoolBytes = std::uint64_t{4} << 30;
constexpr int kRounds = 2001;

// Nanoseconds, median of many.
template <typename Body>
double median_ns(const Body& body) {
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    body();
    times.push_back(
        std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
  }
  return median(times);
}

void run() {
  engine::MemoryPool pool(engine::reserve_device_memory(kPoolBytes));
  // What a model and some neighbours leave: the search has ranges to pass.
  std::vector<std::byte*> neighbours;
  for (int i = 0; i < 8; ++i) neighbours.push_back(pool.allocate(std::uint64_t{16} << 20));
  for (int i = 0; i < 8; i += 2) pool.deallocate(neighbours[i]);
  for (const std::uint64_t mebibytes : {1ULL, 64ULL, 1024ULL}) {
    const double ns = median_ns([&] { pool.deallocate(pool.allocate(mebibytes << 20)); });
    std::printf("allocate and deallocate, %4llu MiB %10.0f ns\n",
                static_cast<unsigned long long>(mebibytes), ns);
  }
  for (const std::size_t batch : {8U, 32U, 256U}) {
    const std::vector<std::uint64_t> sizes(batch, std::uint64_t{1} << 20);
    const double ns = median_ns([&] {
      for (std::byte* range : pool.pre_allocate_batch(sizes)) pool.deallocate(range);
    });
    std::printf("pre_allocate_batch, %4zu x 1 MiB   %10.0f ns\n", batch, ns);
  }
}

}  // namespace
}  // namespace inferno::lab

int main() { return inferno::lab::run_bench(inferno::lab::run); }
