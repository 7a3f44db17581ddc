// Element types of weights and KV blocks, and their exact conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/base/e4m3.h"

namespace inferno::ops {

enum class Dtype : std::uint8_t {
  F32,
  F16,   // IEEE binary16
  BF16,  // the upper half of a float
  Fp8,   // e4m3; of KV blocks only
};

constexpr std::size_t dtype_bytes(Dtype dtype) noexcept {
  return dtype == Dtype::F32 ? 4 : dtype == Dtype::Fp8 ? 1 : 2;
}

constexpr const char* dtype_name(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::F32:
      return "f32";
    case Dtype::F16:
      return "f16";
    case Dtype::BF16:
      return "bf16";
    case Dtype::Fp8:
      return "fp8";
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

inline float f16_to_f32(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  // The exponent's bias goes from 15 to 127; a multiplication does it for subnormal numbers too,
  // exactly.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  const std::uint32_t special = magnitude >= 0x7c00U ? 0x7f800000U : 0U;  // infinity or NaN
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | sign);
}

// Rounds to nearest even; beyond the range of binary16 is infinity, a NaN stays a NaN.
std::uint16_t f32_to_f16(float value) noexcept;

// Element `index` of an array of `dtype`; any alignment. Of fp8 a code's value, without a scale.
inline float load_element(const std::byte* data, Dtype dtype, std::size_t index) noexcept {
  if (dtype == Dtype::F32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  if (dtype == Dtype::Fp8) return e4m3_to_f32(static_cast<std::uint8_t>(data[index]));
  std::uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == Dtype::BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

inline void store_element(std::byte* data, Dtype dtype, std::size_t index, float value) noexcept {
  if (dtype == Dtype::F32) {
    std::memcpy(data + index * 4, &value, 4);
    return;
  }
  if (dtype == Dtype::Fp8) {
    data[index] = static_cast<std::byte>(f32_to_e4m3(value));
    return;
  }
  const std::uint16_t bits = dtype == Dtype::BF16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(data + index * 2, &bits, 2);
}

}  // namespace inferno::ops
