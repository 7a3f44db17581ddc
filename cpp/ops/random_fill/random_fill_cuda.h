// Random weights made on the device: the values of engine/weights/random_weights.h, bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cuda/cuda_op.h"

namespace inferno::ops::cuda {

struct RandomFillArgs {
  const void* table = nullptr;  // [4096] elements: NormalTable::values
  std::uint64_t key = 0;        // stream of the tensor
  // Row r begins at value r * random_row_stride(num_columns) of the stream.
  std::uint32_t num_rows = 0;
  std::uint32_t num_columns = 0;
  Dtype dtype = Dtype::BF16;
  void* out = nullptr;  // [num_rows, num_columns]
};

void random_fill_cuda(const CudaOp& op, const RandomFillArgs& args);

}  // namespace inferno::ops::cuda
