// Products out of registers alone, by each instruction set. Plain declarations: the files that are
// compiled for one instruction set include this.
#pragma once

#include <cstdint>

namespace inferno::ops {

// Multiplies `rounds` times whatever the registers hold; answers how many products these are.
using ProductLoop = std::uint64_t (*)(std::uint32_t rounds);

std::uint64_t multiply_floats_avx2(std::uint32_t rounds);
std::uint64_t multiply_bytes_avx2(std::uint32_t rounds);
std::uint64_t multiply_bytes_avxvnni(std::uint32_t rounds);
std::uint64_t multiply_bytes_avx512vnni(std::uint32_t rounds);
std::uint64_t multiply_floats_avx512(std::uint32_t rounds);
std::uint64_t multiply_bf16_avx512(std::uint32_t rounds);
std::uint64_t multiply_bytes_avx512(std::uint32_t rounds);
std::uint64_t multiply_bf16_amx(std::uint32_t rounds);
std::uint64_t multiply_bytes_amx(std::uint32_t rounds);

}  // namespace inferno::ops
