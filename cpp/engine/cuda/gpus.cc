#include "engine/cuda/gpus.h"

#include "engine/error.h"
#ifdef INFERNO_CUDA
#include <cuda_runtime_api.h>

#include <future>

#include "ops/cuda/cuda_op.h"
#endif

namespace inferno::engine {

#ifdef INFERNO_CUDA

bool has_cuda() noexcept { return true; }

std::vector<GpuKind> gpu_kinds() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return {};
  ops::cuda::check(status, "cudaGetDeviceCount");
  std::vector<GpuKind> kinds;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    char id[32] = {};
    ops::cuda::check(cudaDeviceGetPCIBusId(id, sizeof(id), ordinal), "cudaDeviceGetPCIBusId");
    cudaDeviceProp properties;
    ops::cuda::check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
    kinds.push_back({id, properties.name, static_cast<std::uint32_t>(properties.major),
                     static_cast<std::uint32_t>(properties.minor)});
  }
  return kinds;
}

GpuMemory gpu_memory(std::uint32_t ordinal) {
  // The current device is its thread's, and the caller's stays as it is.
  const auto read = [ordinal] {
    ops::cuda::check(cudaSetDevice(static_cast<int>(ordinal)), "cudaSetDevice");
    std::size_t free = 0;
    std::size_t total = 0;
    ops::cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return GpuMemory{total, free};
  };
  return std::async(std::launch::async, read).get();
}

#else

bool has_cuda() noexcept { return false; }

std::vector<GpuKind> gpu_kinds() { throw Error(ErrorCode::kOther, "cuda: this build has no CUDA"); }

GpuMemory gpu_memory(std::uint32_t) {
  throw Error(ErrorCode::kOther, "cuda: this build has no CUDA");
}

#endif

}  // namespace inferno::engine
