// What the tests of the CUDA ops share: a stream of the current device, and arrays on the device
// between guards.
#pragma once

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "ops/base/dtype.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda::test {

// Fresh inputs in every run; the log names the seed that repeats them.
inline std::uint32_t fresh_seed() {
  const std::uint32_t seed = std::random_device{}();
  MESSAGE("seed ", seed);
  return seed;
}

// A stream of the current device.
class TestDevice {
 public:
  TestDevice() {
    int device = 0;
    int num_sms = 0;
    int major = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    op_ = {stream_, static_cast<std::uint32_t>(num_sms), major == 9};
  }
  ~TestDevice() { cudaStreamDestroy(stream_); }
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;

  const CudaOp& op() const { return op_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
  CudaOp op_{};
};

// An array on the device, aligned to 256 bytes, between guards. Every byte begins as 0xFF: a NaN in
// every element type, an index beyond any array.
template <typename T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceBuffer(std::size_t size) : size_(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes() + 2 * kGuard), "cudaMalloc");
    check(cudaMemset(memory_, kGuardByte, bytes() + 2 * kGuard), "cudaMemset");
    check(cudaMemset(memory_ + kGuard, 0xFF, bytes()), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  explicit DeviceBuffer(std::span<const T> values) : DeviceBuffer(values.size()) {
    copy_from(values);
  }
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(std::span<const T>(values)) {}
  ~DeviceBuffer() { cudaFree(memory_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() const { return reinterpret_cast<T*>(memory_ + kGuard); }
  std::size_t size() const { return size_; }

  // The copies and `zero` wait for all streams of the device, before and after.
  void copy_from(std::span<const T> values) {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const std::size_t count = std::min(size_, values.size());
    check(cudaMemcpy(data(), values.data(), count * sizeof(T), cudaMemcpyDefault), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  std::vector<T> to_host() const {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDefault), "cudaMemcpy");
    return values;
  }
  void zero() {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemset(data(), 0, bytes()), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  bool guards_are_whole() const {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    std::vector<unsigned char> all(bytes() + 2 * kGuard);
    check(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDefault), "cudaMemcpy");
    const auto whole = [](unsigned char byte) { return byte == kGuardByte; };
    return std::all_of(all.begin(), all.begin() + kGuard, whole) &&
           std::all_of(all.end() - kGuard, all.end(), whole);
  }

 private:
  static constexpr std::size_t kGuard = 1024;
  static constexpr unsigned char kGuardByte = 0xA5;
  std::size_t bytes() const { return size_ * sizeof(T); }

  std::byte* memory_ = nullptr;
  std::size_t size_;
};

// Elements of 16 bits, rounded from floats.
inline std::vector<std::uint16_t> to_elements(std::span<const float> values, Dtype dtype) {
  std::vector<std::uint16_t> elements(values.size());
  auto* bytes = reinterpret_cast<std::byte*>(elements.data());
  for (std::size_t i = 0; i < values.size(); ++i) store_element(bytes, dtype, i, values[i]);
  return elements;
}

inline std::vector<float> to_floats(std::span<const std::uint16_t> elements, Dtype dtype) {
  std::vector<float> values(elements.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(elements.data());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = load_element(bytes, dtype, i);
  return values;
}

}  // namespace inferno::ops::cuda::test
