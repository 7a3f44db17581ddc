// Normal values from a counter: value i of a tensor depends on (seed, tensor, i) only, so any part
// of it can be made by any thread, and an engine of another kind can repeat it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/base/dtype.h"

namespace inferno::engine {

// The normal distribution in 4,096 steps of equal probability (up to 3.7 deviations): finer than
// bf16 can tell.
class NormalTable {
 public:
  // Values of the given deviation, in `dtype`.
  NormalTable(float deviation, ops::Dtype dtype);

  // Writes values first, first + 1, … of the stream `key` to out (whole elements of dtype). `first`
  // is a multiple of 4.
  void fill(std::uint64_t key, std::uint64_t first, std::span<std::byte> out) const;

  static constexpr std::size_t kSteps = 4096;
  float deviation() const { return deviation_; }
  ops::Dtype dtype() const { return dtype_; }
  // [kSteps] in `dtype`, for a device that fills by itself.
  std::span<const std::byte> values() const {
    return std::span(values_).first(kSteps * ops::dtype_bytes(dtype_));
  }

 private:
  float deviation_;
  ops::Dtype dtype_;
  std::array<std::byte, kSteps * 4> values_{};
};

// Row r of a matrix begins at this times r in its tensor's stream.
constexpr std::uint64_t random_row_stride(std::uint32_t num_columns) {
  return (std::uint64_t{num_columns} + 3) / 4 * 4;
}

// The stream of one tensor.
std::uint64_t tensor_key(std::uint64_t seed, std::uint64_t tensor);

}  // namespace inferno::engine
