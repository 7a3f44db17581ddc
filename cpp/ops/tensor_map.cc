#include "ops/tensor_map.h"

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

}  // namespace

CUtensorMap box_map(const DeviceMatrix& matrix, std::uint32_t box_rows) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
  const CUtensorMapDataType type = matrix.dtype == Dtype::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t size[] = {matrix.num_columns, matrix.num_rows};
  const cuuint64_t row_bytes[] = {cuuint64_t{matrix.num_columns} * dtype_bytes(matrix.dtype)};
  const cuuint32_t box[] = {kBoxColumns, box_rows};
  const cuuint32_t every[] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, type, 2, const_cast<void*>(matrix.data), size, row_bytes, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::invalid_argument("other: no tensor map for " + std::to_string(matrix.num_rows) +
                                " x " + std::to_string(matrix.num_columns) + " elements (error " +
                                std::to_string(status) +
                                "): data aligned to 16 bytes and a multiple of 8 columns expected");
  }
  return map;
}

}  // namespace inferno::ops::cuda
