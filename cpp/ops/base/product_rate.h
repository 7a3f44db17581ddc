// The ceiling beside figures of many rows: how fast this machine multiplies.
#pragma once

#include <cstdint>

#include "ops/base/simd/isa.h"

namespace inferno::ops {

// What is multiplied.
enum class Factors : std::uint8_t {
  Floats,
  Bf16,   // as floats where `isa` has no products of them
  Bytes,  // integers
};

// Products (each a multiplication and an addition) per second of `num_threads` threads that read
// nothing but registers, by the instructions that `isa` has for such factors; the fastest span of
// a third of a millisecond or so counts, because other processes only ever slow one down. Takes
// less than a second. Throws std::invalid_argument for no threads, and where the machine has no
// `isa` or that is portable code.
double measure_product_rate(Isa isa, Factors factors, std::uint32_t num_threads);

}  // namespace inferno::ops
