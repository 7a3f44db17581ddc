#include "ops/dtype.h"

namespace inferno::ops {

float f16_to_f32(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  if (magnitude >= 0x0400U) {  // normal: the exponent's bias goes from 15 to 127
    return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
  }
  const float value = static_cast<float>(magnitude) * 0x1p-24F;  // subnormal: exact
  return sign != 0 ? -value : value;
}

std::uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return static_cast<std::uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x3ffU));
  }
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // 65536 and up
  if (magnitude <
      0x38800000U) {  // below 2^-14: adding 0.5 leaves the rounded subnormal in the tail
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23);
  return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

float load_element(const std::byte* data, Dtype dtype, std::size_t index) noexcept {
  if (dtype == Dtype::F32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == Dtype::BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

void store_element(std::byte* data, Dtype dtype, std::size_t index, float value) noexcept {
  if (dtype == Dtype::F32) {
    std::memcpy(data + index * 4, &value, 4);
    return;
  }
  const std::uint16_t bits = dtype == Dtype::BF16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(data + index * 2, &bits, 2);
}

}  // namespace inferno::ops
