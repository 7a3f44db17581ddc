#include "ops/cuda/cuda_op.h"

#include <stdexcept>
#include <string>

namespace inferno::ops::cuda {
namespace {

// After these the context answers every call with the same error (CUDA Runtime API, "Error
// handling": "the process must be terminated and relaunched").
bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorExternalDevice:
    case cudaErrorContained:
    case cudaErrorContextIsDestroyed:
    case cudaErrorMpsClientTerminated:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const std::string text =
      std::string(call) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status);
  if (is_sticky(status)) throw std::runtime_error("sticky: " + text);
  cudaGetLastError();
  const bool memory = status == cudaErrorMemoryAllocation;
  throw std::runtime_error((memory ? "out_of_memory: " : "other: ") + text);
}

}  // namespace inferno::ops::cuda
