#include "engine/gpus.h"

#include "engine/error.h"
#ifdef INFERNO_CUDA
#include <cuda_runtime_api.h>

#include "ops/cuda_op.h"
#endif

namespace inferno::engine {

#ifdef INFERNO_CUDA

bool has_cuda() noexcept { return true; }

std::vector<std::string> gpu_bus_ids() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return {};
  ops::cuda::check(status, "cudaGetDeviceCount");
  std::vector<std::string> ids;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    char id[32] = {};
    ops::cuda::check(cudaDeviceGetPCIBusId(id, sizeof(id), ordinal), "cudaDeviceGetPCIBusId");
    ids.emplace_back(id);
  }
  return ids;
}

#else

bool has_cuda() noexcept { return false; }

std::vector<std::string> gpu_bus_ids() {
  throw Error(ErrorCode::kOther, "cuda: this build has no CUDA");
}

#endif

}  // namespace inferno::engine
