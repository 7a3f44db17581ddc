// Sums in registers that grow by products, for files compiled for one instruction set only; the
// unnamed namespace keeps what is made of it out of sight of the linker.
#pragma once

#include <cstdint>

namespace inferno::ops {
namespace {

// Of `Sums` sums at once, each takes `multiply`'s answer, which is the sum with `products` more.
template <typename Vector, int Sums, typename Multiply>
std::uint64_t repeat_sums(std::uint32_t rounds, std::uint64_t products, Multiply multiply) {
  Vector sums[Sums] = {};
  for (std::uint32_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (Vector& sum : sums) {
      sum = multiply(sum);
      __asm__ volatile("" : "+v"(sum));  // or equal sums would become one
    }
  }
  return std::uint64_t{rounds} * Sums * products;
}

}  // namespace
}  // namespace inferno::ops
