// Goal: an error of the driver reaches the caller under the right code. Method: `check` on one
// status of each kind.
#include "ops/cuda/cuda_op.h"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

namespace inferno::ops::cuda {
namespace {

std::string text_of(cudaError_t status) {
  try {
    check(status, "cudaSomething");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("success is no error") { CHECK(text_of(cudaSuccess).empty()); }

TEST_CASE("a failed allocation is out_of_memory") {
  CHECK(text_of(cudaErrorMemoryAllocation)
            .starts_with("out_of_memory: cudaSomething: cudaErrorMemoryAllocation, "));
}

TEST_CASE("what makes the context unusable is sticky") {
  for (const cudaError_t status :
       {cudaErrorIllegalAddress, cudaErrorLaunchTimeout, cudaErrorIllegalInstruction,
        cudaErrorMisalignedAddress, cudaErrorLaunchFailure, cudaErrorAssert,
        cudaErrorECCUncorrectable, cudaErrorHardwareStackError, cudaErrorUnknown}) {
    CHECK(text_of(status) == std::string("sticky: cudaSomething: ") + cudaGetErrorName(status) +
                                 ", " + cudaGetErrorString(status));
  }
}

TEST_CASE("everything else is other, and names the call") {
  for (const cudaError_t status : {cudaErrorInvalidValue, cudaErrorInvalidConfiguration,
                                   cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    CHECK(text_of(status) == std::string("other: cudaSomething: ") + cudaGetErrorName(status) +
                                 ", " + cudaGetErrorString(status));
  }
}

TEST_CASE("an error that is not sticky is cleared") {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess) {
    MESSAGE("left out: without a device every call leaves an error");
    return;
  }
  const cudaError_t failed = cudaSetDevice(-1);
  REQUIRE(failed != cudaSuccess);
  CHECK(!text_of(failed).empty());
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

}  // namespace
}  // namespace inferno::ops::cuda
