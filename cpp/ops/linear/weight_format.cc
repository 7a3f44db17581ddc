#include "ops/linear/weight_format.h"

#include <bit>
#include <cmath>
#include <limits>

namespace inferno::ops {

float e4m3_to_f32(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU;
  if (magnitude == 0x7fU) return std::numeric_limits<float>::quiet_NaN();
  // The exponent's bias goes from 7 to 127; a multiplication does it for subnormal numbers, too.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120F;
  return (code & 0x80U) != 0 ? -value : value;
}

std::uint8_t f32_to_e4m3(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint8_t sign = bits >> 31 != 0 ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (!(magnitude < kE4m3Max)) return sign | (std::isnan(value) ? 0x7fU : 0x7eU);
  // Below the normal numbers neighbours are 2^-9 apart.
  if (magnitude < 0x1p-6F) return sign | static_cast<std::uint8_t>(std::lrint(magnitude * 0x1p9F));
  const std::uint32_t rounded = (bits & 0x7fffffffU) + 0x7ffffU + (bits >> 20 & 1U);
  return sign | static_cast<std::uint8_t>((rounded >> 20) - (120U << 3));
}

}  // namespace inferno::ops
