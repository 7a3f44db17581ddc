// Element types of weights and KV blocks, and their exact conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace inferno::ops {

enum class Dtype : std::uint8_t {
  F32,
  F16,   // IEEE binary16
  BF16,  // the upper half of a float
};

constexpr std::size_t dtype_bytes(Dtype dtype) noexcept { return dtype == Dtype::F32 ? 4 : 2; }

constexpr const char* dtype_name(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::F32:
      return "f32";
    case Dtype::F16:
      return "f16";
    case Dtype::BF16:
      return "bf16";
  }
  return "unknown";
}

inline float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest even; a NaN stays a NaN.
inline std::uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float f16_to_f32(std::uint16_t bits) noexcept;

// Rounds to nearest even; beyond the range of binary16 is infinity, a NaN stays a NaN.
std::uint16_t f32_to_f16(float value) noexcept;

// Element `index` of an array of `dtype`.
float load_element(const std::byte* data, Dtype dtype, std::size_t index) noexcept;
void store_element(std::byte* data, Dtype dtype, std::size_t index, float value) noexcept;

}  // namespace inferno::ops
