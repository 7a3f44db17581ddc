// What every op gets first: where it runs and the memory it may scribble on.
#pragma once

#include <cstddef>
#include <span>

#include "ops/base/simd/isa.h"
#include "ops/base/thread_pool.h"

namespace inferno::ops {

// Alignment of workspace and of packed weights, in bytes.
inline constexpr std::size_t kAlignment = 64;

// Rounded up to whole steps.
constexpr std::size_t round_up(std::size_t value, std::size_t step) noexcept {
  return (value + step - 1) / step * step;
}

// For all ops: pointers need the natural alignment of their elements, arrays are dense and
// row-major unless a stride is named, inputs and outputs do not overlap unless the contract says in
// place, and an empty input (no rows) is allowed and does nothing. An op allocates no memory. What
// a caller can get wrong is answered by std::invalid_argument, whose text begins with
// "invalid_batch: " or "other: ".
//
// Same bits: for one instruction set, what an op computes for a token depends on this token's
// inputs only, never on the other rows, their number, the number of threads or where blocks lie.
struct OpContext {
  ThreadPool& threads;
  Isa isa;
  // Scratch, aligned to kAlignment, with at least what the <op>_workspace_bytes functions of the
  // ops in use say (the largest is enough: nothing in it outlives a call).
  std::span<std::byte> workspace;
};

}  // namespace inferno::ops
