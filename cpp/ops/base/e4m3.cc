#include "ops/base/e4m3.h"

#include <cmath>

namespace inferno::ops {

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
