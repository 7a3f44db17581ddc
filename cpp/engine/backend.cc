#include "engine/backend.h"

#include "engine/base/error.h"
#include "engine/cpu/cpu_backend.h"
#ifdef INFERNO_CUDA
#include "engine/cuda/cuda_backend.h"
#endif

namespace inferno::engine {
namespace {

[[noreturn, maybe_unused]] void refuse_cuda() {
  throw Error(ErrorCode::kOther, "cuda: this build has no CUDA");
}

}  // namespace

std::unique_ptr<Backend> make_backend(const DeviceOptions& options) {
  if (options.backend == BackendKind::Cpu) return std::make_unique<CpuBackend>(options);
#ifdef INFERNO_CUDA
  return std::make_unique<CudaBackend>(options);
#else
  refuse_cuda();
#endif
}

std::unique_ptr<Sizes> make_sizes(const DeviceOptions& options) {
  if (options.backend == BackendKind::Cpu) return std::make_unique<CpuSizes>(options.num_threads);
#ifdef INFERNO_CUDA
  return std::make_unique<CudaSizes>();
#else
  refuse_cuda();
#endif
}

}  // namespace inferno::engine
