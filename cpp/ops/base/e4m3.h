// The 8-bit floating point type e4m3: a sign, 4 bits of exponent and 3 of mantissa, no infinity.
// OCP, "8-bit Floating Point Specification", 2023.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace inferno::ops {

inline constexpr float kE4m3Max = 448;

// Exact; the two codes without a value are NaN.
inline float e4m3_to_f32(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU;
  if (magnitude == 0x7fU) return std::numeric_limits<float>::quiet_NaN();
  // The exponent's bias goes from 7 to 127; a multiplication does it for subnormal numbers, too.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120F;
  return (code & 0x80U) != 0 ? -value : value;
}

// Rounds to nearest even; beyond 448 is 448, a NaN stays a NaN.
std::uint8_t f32_to_e4m3(float value) noexcept;

}  // namespace inferno::ops
