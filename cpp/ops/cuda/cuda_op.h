// What every CUDA op gets first, and how it answers an error of the driver.
//
// For all CUDA ops: pointers without another word are device memory, aligned to 16 bytes; arrays
// are dense and row-major; an empty input launches nothing. Elements are those of `dtype`, F16 or
// BF16; sums are float. An op allocates nothing, copies nothing to the host and does not wait for
// the stream, so it can be captured into a CUDA graph. What a caller can get wrong is answered by
// std::invalid_argument, whose text begins with "invalid_batch: " or "other: ".
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/linear/weight_format.h"

namespace inferno::ops::cuda {

struct CudaOp {
  cudaStream_t stream;
  std::uint32_t num_sms;  // of the device
  bool dependent_launch;  // compute capability 9.0, whose own code then runs
};

// Throws std::runtime_error where `status` is not success: "out_of_memory: …", or "sticky: …" for
// what makes the context unusable (cudaErrorIllegalAddress and its kind), or "other: …", naming the
// call. Clears an error that is not sticky.
void check(cudaError_t status, const char* call);

// A weight matrix as checkpoints have it, [num_rows, num_columns] row-major, or, quantized, in the
// layout of code_layout.h; `data` aligned to 256 bytes, num_columns a multiple of 8.
struct DeviceMatrix {
  const void* data = nullptr;
  std::uint32_t num_rows = 0;     // N: outputs
  std::uint32_t num_columns = 0;  // K: inputs
  WeightFormat format = Dtype::BF16;

  constexpr Dtype dtype() const { return format.dtype(); }  // of what is not quantized
};

// Kernels of a step are launched with programmatic stream serialisation: a kernel may start while
// its predecessor still runs. So every kernel of these ops executes griddepcontrol.wait in every
// thread that reads or writes anything but constant weights, before it does so, and in at least one
// thread of each grid in any case; griddepcontrol.launch_dependents as early as pays. On sm_80,
// which has neither, both are nothing and the attribute is left out. cuda_device.cuh has them.
}  // namespace inferno::ops::cuda
