// Places several arrays in one range of the pool.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inferno::engine {

// Hands out offsets, each a multiple of kAlignment; the same calls give the same offsets, so a size
// can be asked for before there is memory.
class Layout {
 public:
  static constexpr std::uint64_t kAlignment = 256;

  std::uint64_t place(std::uint64_t bytes) {
    const std::uint64_t offset = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }

  // From here on, what was placed since `offset` is placed over.
  void rewind(std::uint64_t offset) {
    peak_ = bytes();
    bytes_ = offset;
  }

  std::uint64_t here() const { return bytes_; }
  std::uint64_t bytes() const { return peak_ > bytes_ ? peak_ : bytes_; }

  // Ends an overlay: goes on after the longest of what lies over each other.
  void join() { bytes_ = bytes(); }

 private:
  std::uint64_t bytes_ = 0;
  std::uint64_t peak_ = 0;
};

}  // namespace inferno::engine
