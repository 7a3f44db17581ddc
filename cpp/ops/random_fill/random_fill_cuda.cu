// Blocks take rows in turn; a thread makes eight neighbouring values from two words of the stream.
#include <algorithm>
#include <stdexcept>

#include "ops/cuda/cuda_device.cuh"
#include "ops/random_fill/random_fill_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kTableSize = 4096;
constexpr std::uint32_t kPerWord = 4;  // values of a 64-bit word
constexpr std::uint32_t kPerThread = 8;

// As in engine/weights/random_weights.cc.
__device__ std::uint64_t word_of(std::uint64_t key, std::uint64_t index) {
  std::uint64_t x = key + index * 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

struct alignas(16) Values {
  std::uint16_t at[kPerThread];
};

__device__ Values values_of(const std::uint16_t* table, std::uint64_t key, std::uint64_t index) {
  Values values;
#pragma unroll
  for (std::uint32_t i = 0; i < kPerThread; ++i) {
    const std::uint64_t word = word_of(key, index + i / kPerWord);
    values.at[i] = table[word >> (i % kPerWord * 16) & (kTableSize - 1)];
  }
  return values;
}

// The table is the caller's copy: a constant, but made just before.
__global__ void __launch_bounds__(kThreads) random_fill_kernel(RandomFillArgs args) {
  __shared__ Values table[kTableSize / kPerThread];
  let_next_start();
  wait_for_previous();
  for (std::uint32_t i = threadIdx.x; i < kTableSize / kPerThread; i += kThreads) {
    table[i] = static_cast<const Values*>(args.table)[i];
  }
  __syncthreads();
  const std::uint32_t columns = args.num_columns;
  const std::uint64_t words_of_row = (columns + kPerWord - 1) / kPerWord;
  const bool aligned = columns % kPerThread == 0;
  for (std::uint32_t row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
    std::uint16_t* out = static_cast<std::uint16_t*>(args.out) + std::size_t{row} * columns;
    for (std::uint32_t column = threadIdx.x * kPerThread; column < columns;
         column += kThreads * kPerThread) {
      const Values values =
          values_of(table[0].at, args.key, row * words_of_row + column / kPerWord);
      if (aligned) {
        *reinterpret_cast<Values*>(out + column) = values;
        continue;
      }
#pragma unroll
      for (std::uint32_t i = 0; i < kPerThread; ++i) {
        if (column + i < columns) out[column + i] = values.at[i];
      }
    }
  }
}

}  // namespace

void random_fill_cuda(const CudaOp& op, const RandomFillArgs& args) {
  if (args.num_rows == 0 || args.num_columns == 0) return;
  if (args.dtype == Dtype::F32) {
    throw std::invalid_argument("other: random_fill: elements of f32, expected f16 or bf16");
  }
  const std::uint32_t blocks = std::min(args.num_rows, 8 * op.num_sms);
  launch(op, random_fill_kernel, {blocks, kThreads}, args);
}

}  // namespace inferno::ops::cuda
