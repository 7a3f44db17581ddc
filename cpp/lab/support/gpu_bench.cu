#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>

#include "lab/support/gpu_bench.h"

namespace inferno::lab {
namespace {

using ops::cuda::check;

constexpr int kRounds = 11;
// What the clocks and caches make of the first rounds is not wanted.
constexpr int kIgnoredRounds = 2;
// A round is long beside what its two events take, unless a single replay is longer still.
constexpr double kRoundUs = 3000;
constexpr double kMostReplays = 20;

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
  return value;
}

__device__ std::uint64_t scramble(std::size_t index) {
  std::uint64_t bits = (index + 1) * 0x9E3779B97F4A7C15U;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9U;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBU;
  return bits ^ (bits >> 31);
}

__global__ void uniform_kernel(__nv_bfloat16* values, std::size_t size, float scale) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) {
    const float unit = static_cast<float>(scramble(i) >> 40) * 0x1p-23F - 1.0F;
    values[i] = __float2bfloat16_rn(unit * scale);
  }
}

// Box, Muller: "A note on the generation of random normal deviates", 1958.
__global__ void normal_kernel(float* values, std::size_t size) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) {
    const std::uint64_t bits = scramble(i);
    const float unit = static_cast<float>((bits >> 40) + 1) * 0x1p-24F;
    const float angle = static_cast<float>(bits & 0xFFFFFFU) * 0x1p-24F * 6.2831853F;
    values[i] = 2 * sqrtf(-2 * logf(unit)) * cosf(angle);
  }
}

// Milliseconds of `replays` replays.
double time_ms(const Gpu& gpu, const engine::CudaGraph& graph, int replays) {
  engine::CudaEvent begin;
  engine::CudaEvent end;
  begin.record(gpu.op().stream);
  for (int i = 0; i < replays; ++i) graph.launch(gpu.op().stream);
  end.record(gpu.op().stream);
  end.wait();
  return end.since(begin);
}

}  // namespace

Gpu::Gpu() {
  op_.stream = stream_.get();
  op_.num_sms = static_cast<std::uint32_t>(attribute(cudaDevAttrMultiProcessorCount));
  op_.dependent_launch = attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

void Gpu::wait() const { check(cudaStreamSynchronize(op_.stream), "cudaStreamSynchronize"); }

double Gpu::median_us(const std::function<void()>& launches) const {
  launches();
  engine::CudaGraph graph;
  graph.record(op_.stream, launches);
  time_ms(*this, graph, 1);
  const double once_us = time_ms(*this, graph, 1) * 1e3;
  const auto replays = static_cast<int>(std::clamp(kRoundUs / once_us, 1.0, kMostReplays));
  std::vector<double> times;
  for (int round = 0; round < kIgnoredRounds + kRounds; ++round) {
    const double ms = time_ms(*this, graph, replays);
    if (round >= kIgnoredRounds) times.push_back(ms * 1e3 / replays);
  }
  return median(times);
}

void clear_device(void* data, std::size_t bytes) {
  check(cudaMemset(data, 0, bytes), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void copy_to_device(void* data, const void* from, std::size_t bytes) {
  check(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void fill_uniform(const Gpu& gpu, const DeviceArray<Bf16>& values, float scale) {
  auto* elements = reinterpret_cast<__nv_bfloat16*>(values.data());
  uniform_kernel<<<gpu.op().num_sms * 8, 512, 0, gpu.op().stream>>>(elements, values.size(), scale);
  check(cudaGetLastError(), "uniform_kernel");
}

void fill_normal(const Gpu& gpu, const DeviceArray<float>& values) {
  normal_kernel<<<gpu.op().num_sms * 8, 512, 0, gpu.op().stream>>>(values.data(), values.size());
  check(cudaGetLastError(), "normal_kernel");
}

DeviceArray<Bf16> uniform_array(const Gpu& gpu, std::size_t size, float scale) {
  DeviceArray<Bf16> values(size);
  fill_uniform(gpu, values, scale);
  return values;
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int run_bench(const std::function<void()>& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace inferno::lab
