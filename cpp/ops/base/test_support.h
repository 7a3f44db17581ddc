// What the op tests share: every instruction set in turn, seeded values, poisoned outputs,
// comparison with a float64 reference.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <new>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ops/base/dtype.h"
#include "ops/base/op_context.h"
#include "ops/base/simd/isa.h"
#include "ops/base/thread_pool.h"

namespace inferno::ops::test {

inline const float kPoison = std::numeric_limits<float>::quiet_NaN();

// Memory aligned as the engine's pool aligns it.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t size)
      : data_(static_cast<std::byte*>(::operator new (size + 1, std::align_val_t{kAlignment}))),
        size_(size) {}
  ~AlignedBytes() { ::operator delete (data_, std::align_val_t{kAlignment}); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data_, size_}; }

 private:
  std::byte* data_;
  std::size_t size_;
};

// A device of its own for one test.
class Device {
 public:
  Device(Isa isa, std::uint32_t num_threads, std::size_t workspace_bytes = 0)
      : threads_(num_threads), workspace_(workspace_bytes), isa_(isa) {}
  OpContext context() { return {threads_, isa_, workspace_.span()}; }

 private:
  ThreadPool threads_;
  AlignedBytes workspace_;
  Isa isa_;
};

// Calls `test` for each instruction set that the machine has, and says which it has not.
inline void for_each_isa(const std::function<void(Isa)>& test) {
  for (const Isa isa : kIsas) {
    if (!isa_available(isa)) {
      MESSAGE("left out: this machine has no ", std::string(isa_name(isa)));
      continue;
    }
    CAPTURE(std::string(isa_name(isa)));
    test(isa);
  }
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  // From low to high, both included.
  std::uint32_t integer(std::uint32_t low, std::uint32_t high) {
    return std::uniform_int_distribution<std::uint32_t>(low, high)(engine_);
  }
  std::vector<float> normals(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal();
    return values;
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// The values as an array of `dtype`.
inline std::vector<std::byte> encode(std::span<const float> values, Dtype dtype) {
  std::vector<std::byte> bytes(values.size() * dtype_bytes(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) store_element(bytes.data(), dtype, i, values[i]);
  return bytes;
}

// What is left of a value in `dtype`.
inline float rounded(float value, Dtype dtype) {
  std::byte bytes[4];
  store_element(bytes, dtype, 0, value);
  return load_element(bytes, dtype, 0);
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  }
  return true;
}

// An output between guards: poisoned before, and nothing may be written outside.
class Output {
 public:
  explicit Output(std::size_t size) : values_(size + 2 * kGuard, kPoison), size_(size) {
    for (std::size_t i = 0; i < kGuard; ++i) values_[i] = values_[kGuard + size + i] = kGuardValue;
  }
  float* data() { return values_.data() + kGuard; }
  std::span<const float> span() const { return {values_.data() + kGuard, size_}; }
  bool guards_are_whole() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (values_[i] != kGuardValue || values_[kGuard + size_ + i] != kGuardValue) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr float kGuardValue = 12345.0F;
  std::vector<float> values_;
  std::size_t size_;
};

}  // namespace inferno::ops::test
