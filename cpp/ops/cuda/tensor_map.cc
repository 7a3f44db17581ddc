#include "ops/cuda/tensor_map.h"

#include <cudaTypedefs.h>

#include <stdexcept>
#include <string>

namespace inferno::ops::cuda {
namespace {

// The driver's function, found through the runtime: nothing links libcuda.
PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
  if (found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error("other: the driver has no cuTensorMapEncodeTiled (CUDA 12.0)");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

struct MapShape {
  std::uint32_t rank;
  const cuuint64_t* size;
  const cuuint64_t* stride;
  const cuuint32_t* box;
};

CUtensorMap encode(const void* data, CUtensorMapDataType type, CUtensorMapSwizzle swizzle,
                   const MapShape& shape) {
  static const PFN_cuTensorMapEncodeTiled_v12000 function = find_encode();
  const cuuint32_t every[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      function(&map, type, shape.rank, const_cast<void*>(data), shape.size, shape.stride, shape.box,
               every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::invalid_argument("other: no tensor map for " + std::to_string(shape.size[1]) +
                                " rows of " + std::to_string(shape.size[0]) + " elements (error " +
                                std::to_string(status) +
                                "): data aligned to 16 bytes and a multiple of 8 columns expected");
  }
  return map;
}

CUtensorMap encode(const DeviceMatrix& matrix, const MapShape& shape) {
  const CUtensorMapDataType type = matrix.dtype() == Dtype::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                                 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode(matrix.data, type, CU_TENSOR_MAP_SWIZZLE_128B, shape);
}

}  // namespace

CUtensorMap box_map(const DeviceMatrix& matrix, std::uint32_t box_rows) {
  const cuuint64_t size[] = {matrix.num_columns, matrix.num_rows};
  const cuuint64_t stride[] = {cuuint64_t{matrix.num_columns} * dtype_bytes(matrix.dtype())};
  const cuuint32_t box[] = {kBoxColumns, box_rows};
  return encode(matrix, {2, size, stride, box});
}

// A third dimension counts the boxes of a row.
CUtensorMap boxes_map(const DeviceMatrix& matrix, std::uint32_t box_rows, std::uint32_t num_boxes) {
  const cuuint64_t size[] = {kBoxColumns, matrix.num_rows, matrix.num_columns / kBoxColumns};
  const std::uint64_t element = dtype_bytes(matrix.dtype());
  const cuuint64_t stride[] = {matrix.num_columns * element, kBoxColumns * element};
  const cuuint32_t box[] = {kBoxColumns, box_rows, num_boxes};
  return encode(matrix, {3, size, stride, box});
}

// A fourth dimension counts the matrices.
CUtensorMap stack_map(const MatrixStack& stack, std::uint32_t box_rows, std::uint32_t num_boxes) {
  const DeviceMatrix& matrix = stack.first;
  const cuuint64_t size[] = {kBoxColumns, matrix.num_rows, matrix.num_columns / kBoxColumns,
                             stack.num_matrices};
  const std::uint64_t element = dtype_bytes(matrix.dtype());
  const cuuint64_t stride[] = {matrix.num_columns * element, kBoxColumns * element,
                               stack.stride_bytes};
  const cuuint32_t box[] = {kBoxColumns, box_rows, num_boxes, 1};
  return encode(matrix, {4, size, stride, box});
}

// Column, row of a run, half, run.
CUtensorMap paired_map(const DeviceMatrix& matrix, std::uint32_t box_rows) {
  const std::uint32_t half = matrix.num_rows / 2;
  const cuuint64_t row_bytes = cuuint64_t{matrix.num_columns} * dtype_bytes(matrix.dtype());
  const cuuint64_t size[] = {matrix.num_columns, kPairRows, 2, half / kPairRows};
  const cuuint64_t stride[] = {row_bytes, half * row_bytes, kPairRows * row_bytes};
  const cuuint32_t box[] = {kBoxColumns, kPairRows, 2, box_rows / (2 * kPairRows)};
  return encode(matrix, {4, size, stride, box});
}

// Elements of 8 bytes, of which a box has up to 256 side by side.
CUtensorMap runs_map(const RunGrid& grid, std::uint32_t box_rows, bool paired) {
  constexpr CUtensorMapDataType kType = CU_TENSOR_MAP_DATA_TYPE_INT64;
  const cuuint64_t row_bytes = grid.num_runs * grid.run_bytes;
  const auto words = static_cast<cuuint32_t>(grid.run_bytes / 8);
  if (paired) {
    const std::uint32_t half = grid.num_rows / 2;
    const cuuint64_t size[] = {words, grid.num_runs, 2, half};
    const cuuint64_t stride[] = {grid.run_bytes, half * row_bytes, row_bytes};
    const cuuint32_t box[] = {words, 1, 2, box_rows / 2};
    return encode(grid.data, kType, CU_TENSOR_MAP_SWIZZLE_NONE, {4, size, stride, box});
  }
  const cuuint64_t size[] = {words, grid.num_runs, grid.num_rows};
  const cuuint64_t stride[] = {grid.run_bytes, row_bytes};
  const cuuint32_t box[] = {words, 1, box_rows};
  return encode(grid.data, kType, CU_TENSOR_MAP_SWIZZLE_NONE, {3, size, stride, box});
}

}  // namespace inferno::ops::cuda
