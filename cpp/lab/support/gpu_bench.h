// What the benchmarks on a GPU share: the card as the engine takes it, arrays on it and values for
// them, the time of launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/cuda/cuda_memory.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::lab {

using Bf16 = std::uint16_t;  // its bits

// A stream on the first card. What the engine asks of a card is asked of this one, too.
class Gpu {
 public:
  Gpu();
  const ops::cuda::CudaOp& op() const { return op_; }
  void wait() const;

  // Microseconds of what `launches` puts into the stream, replayed as a graph: the median of
  // several rounds. It is called twice: once for what is found out on first use, once to be
  // recorded.
  double median_us(const std::function<void()>& launches) const;

 private:
  engine::CudaStream stream_;
  ops::cuda::CudaOp op_{};
};

// Both have ended when they return: they go to another stream than the benchmarks' launches, which
// do not wait for it.
void clear_device(void* data, std::size_t bytes);
void copy_to_device(void* data, const void* from, std::size_t bytes);

// An array on the card; zeros at first.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size)
      : memory_(engine::reserve_device_memory(size * sizeof(T))), size_(size) {
    clear_device(data(), size * sizeof(T));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    copy_to_device(data(), values.data(), values.size() * sizeof(T));
  }

  T* data() const { return reinterpret_cast<T*>(memory_->data()); }
  std::size_t size() const { return size_; }

 private:
  std::unique_ptr<engine::Reservation> memory_;
  std::size_t size_;
};

// Values between -scale and scale.
void fill_uniform(const Gpu& gpu, const DeviceArray<Bf16>& values, float scale = 1.0F);
// Normal ones of deviation 2, as logits have.
void fill_normal(const Gpu& gpu, const DeviceArray<float>& values);

DeviceArray<Bf16> uniform_array(const Gpu& gpu, std::size_t size, float scale = 1.0F);

// By a clock that never goes back.
double now_ms();

// 0 of none.
double median(std::vector<double> values);

// Runs a benchmark; what it throws is said in a line. Answers the process's exit status.
int run_bench(const std::function<void()>& body);

}  // namespace inferno::lab
