#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "lab/support/ceilings.h"
#include "ops/cuda/cuda_device.cuh"
#include "ops/linear/cuda/cublaslt.h"

namespace inferno::lab {
namespace {

using ops::cuda::check;

constexpr std::size_t kBytes = std::size_t{4} << 30;  // dozens of times what L2 holds
constexpr std::uint32_t kThreads = 512;
constexpr int kLoads = 4;                   // of a thread under way at once
constexpr std::size_t kMostKernels = 4096;  // of a chain
constexpr std::uint32_t kSize = 8192;       // of the product, each way

// Two waves of full SMs on the largest Hopper; more on smaller cards do no harm.
std::uint32_t num_blocks(const Gpu& gpu) { return std::max(1056U, gpu.op().num_sms * 8); }

// `sink` is written for one sum in 2^32, which the compiler cannot know.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* __restrict__ from, std::size_t size, std::uint32_t* sink) {
  ops::cuda::let_next_start();
  ops::cuda::wait_for_previous();
  const std::size_t stride = std::size_t{gridDim.x} * kThreads;
  std::uint32_t sum = 0;
  const auto add = [&](const uint4& value) { sum ^= value.x ^ value.y ^ value.z ^ value.w; };
  std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * stride < size; i += kLoads * stride) {
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) values[j] = from[i + j * stride];
#pragma unroll
    for (const uint4& value : values) add(value);
  }
  for (; i < size; i += stride) add(from[i]);
  if (sum == 0x9E3779B9U) *sink = sum;
}

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, std::size_t size) {
  const std::size_t stride = std::size_t{gridDim.x} * kThreads;
  std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * stride < size; i += kLoads * stride) {
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) values[j] = from[i + j * stride];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) to[i + j * stride] = values[j];
  }
  for (; i < size; i += stride) to[i] = from[i];
}

// Prints and returns what is moved or computed in a second.
double report(const char* name, double amount, double us, const char* unit) {
  const double per_second = amount / us * 1e6;
  std::printf("%s %.*f %s\n", name, per_second < 1e14 ? 2 : 0, per_second / 1e12, unit);
  std::fflush(stdout);
  return per_second;
}

}  // namespace

double read_ceiling(const Gpu& gpu, std::size_t bytes) {
  const DeviceArray<std::uint32_t> sink(1);
  const std::size_t size = std::clamp(bytes, sizeof(uint4), kBytes) / sizeof(uint4);
  const std::size_t kernels =
      std::clamp<std::size_t>(kBytes / 4 / sizeof(uint4) / size, 1, kMostKernels);
  const DeviceArray<Bf16> memory =
      uniform_array(gpu, kernels * size * sizeof(uint4) / sizeof(Bf16));
  const auto blocks = static_cast<std::uint32_t>(
      std::clamp<std::size_t>(size / (kThreads * kLoads), 1, num_blocks(gpu)));
  const double us = gpu.median_us([&] {
    for (std::size_t i = 0; i < kernels; ++i) {
      launch(gpu.op(), read_kernel, {blocks, kThreads},
             reinterpret_cast<const uint4*>(memory.data()) + i * size, size, sink.data());
    }
  });
  return static_cast<double>(kernels * size * sizeof(uint4)) / us * 1e6;
}

double print_read_ceiling(const Gpu& gpu) {
  const double per_second = read_ceiling(gpu, kBytes);
  return report("read", per_second, 1e6, "TB/s");
}

double print_copy_ceiling(const Gpu& gpu) {
  const DeviceArray<Bf16> from = uniform_array(gpu, kBytes / 2 / sizeof(Bf16));
  const DeviceArray<Bf16> to(from.size());
  const double us = gpu.median_us([&] {
    copy_kernel<<<num_blocks(gpu), kThreads, 0, gpu.op().stream>>>(
        reinterpret_cast<const uint4*>(from.data()), reinterpret_cast<uint4*>(to.data()),
        kBytes / 2 / sizeof(uint4));
    check(cudaGetLastError(), "copy_kernel");
  });
  return report("copy", static_cast<double>(kBytes), us, "TB/s");
}

double print_product_ceiling(const Gpu& gpu) {
  constexpr std::size_t kElements = std::size_t{kSize} * kSize;
  const DeviceArray<std::byte> workspace(ops::cuda::CublasLt::workspace_bytes());
  const DeviceArray<Bf16> h = uniform_array(gpu, kElements);
  const DeviceArray<Bf16> weight = uniform_array(gpu, kElements);
  const DeviceArray<Bf16> y(kElements);
  ops::cuda::CublasLt cublaslt(workspace.data(), 0);
  const double us = gpu.median_us([&] {
    cublaslt.multiply(gpu.op(), {.h = h.data(),
                                 .num_tokens = kSize,
                                 .weight = {weight.data(), kSize, kSize},
                                 .y = y.data()});
  });
  return report("bf16 product 8192^3", 2.0 * kElements * kSize, us, "TFLOP/s");
}

}  // namespace inferno::lab
