// How a weight matrix is stored on the device, and what its codes mean.
//
//   weight = scale * (value(code) - zero_point) - offset
//
// A scale and an offset belong to a group of neighbouring columns of one row, or to the whole row.
// Source: OCP, "Microscaling Formats", 2023 (e2m1).
#pragma once

#include <cstdint>

#include "ops/base/dtype.h"
#include "ops/base/e4m3.h"

namespace inferno::ops {

enum class WeightKind : std::uint8_t {
  F32,
  F16,
  BF16,
  Fp8,    // e4m3: 1, 4 and 3 bits, no infinity
  Int8,   // -128 to 127
  Int4,   // 0 to 15, zero point 8
  Mxfp4,  // e2m1: 1, 2 and 1 bits
};

struct WeightFormat {
  WeightKind kind = WeightKind::BF16;
  std::uint32_t group = 0;  // columns that share a scale; 0: all of a row
  bool offsets = false;     // only of Int8 and Int4

  constexpr WeightFormat() = default;
  constexpr WeightFormat(WeightKind kind, std::uint32_t group = 0, bool offsets = false)
      : kind(kind), group(group), offsets(offsets) {}
  // Not quantized.
  constexpr WeightFormat(Dtype dtype)
      : kind(dtype == Dtype::F32   ? WeightKind::F32
             : dtype == Dtype::F16 ? WeightKind::F16
                                   : WeightKind::BF16) {}

  constexpr bool operator==(const WeightFormat&) const = default;
  constexpr bool is_quantized() const { return kind > WeightKind::BF16; }
  // Of what is not quantized.
  constexpr Dtype dtype() const {
    return kind == WeightKind::F32   ? Dtype::F32
           : kind == WeightKind::F16 ? Dtype::F16
                                     : Dtype::BF16;
  }
};

// Of one weight, without its share of scales.
constexpr std::uint32_t weight_bits(WeightKind kind) noexcept {
  switch (kind) {
    case WeightKind::F32:
      return 32;
    case WeightKind::F16:
    case WeightKind::BF16:
      return 16;
    case WeightKind::Fp8:
    case WeightKind::Int8:
      return 8;
    case WeightKind::Int4:
    case WeightKind::Mxfp4:
      return 4;
  }
  return 0;
}

constexpr const char* weight_kind_name(WeightKind kind) noexcept {
  switch (kind) {
    case WeightKind::F32:
      return "f32";
    case WeightKind::F16:
      return "f16";
    case WeightKind::BF16:
      return "bf16";
    case WeightKind::Fp8:
      return "fp8";
    case WeightKind::Int8:
      return "int8";
    case WeightKind::Int4:
      return "int4";
    case WeightKind::Mxfp4:
      return "mxfp4";
  }
  return "unknown";
}

// Groups of a row of num_columns.
constexpr std::uint32_t num_groups(const WeightFormat& format, std::uint32_t num_columns) noexcept {
  return format.group == 0 ? 1 : (num_columns + format.group - 1) / format.group;
}

// The code of a weight of 0, whatever the scale.
constexpr std::uint8_t zero_code(WeightKind kind) noexcept {
  return kind == WeightKind::Int4 ? 8 : 0;
}

// Twice the value of each e2m1 code, which is a whole number.
inline constexpr std::int8_t kE2m1Doubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                 0, -1, -2, -3, -4, -6, -8, -12};

// value(code) - zero_point of a stored code (of Int8 two's complement).
inline float weight_value(WeightKind kind, std::uint8_t code) noexcept {
  switch (kind) {
    case WeightKind::Fp8:
      return e4m3_to_f32(code);
    case WeightKind::Int8:
      return static_cast<float>(static_cast<std::int8_t>(code));
    case WeightKind::Int4:
      return static_cast<float>(code) - 8;
    case WeightKind::Mxfp4:
      return static_cast<float>(kE2m1Doubled[code & 15]) * 0.5F;
    default:
      return 0;
  }
}

}  // namespace inferno::ops
