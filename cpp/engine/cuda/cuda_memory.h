// What the CUDA runtime hands out, given back by destructors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "engine/memory/memory_pool.h"

namespace inferno::engine {

// One cudaMalloc on the current device. Throws out_of_memory.
std::unique_ptr<Reservation> reserve_device_memory(std::uint64_t bytes);

// Page-locked host memory, which the device's copy engine reads and writes beside the processor.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::uint64_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::uint64_t bytes_;
};

class CudaStream {
 public:
  CudaStream();
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Says when what was before it in a stream has ended.
class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(cudaStream_t stream);
  bool has_ended();  // true before the first record
  void wait();
  // Milliseconds on the device from an event to this one; both have ended.
  float since(const CudaEvent& earlier) const;

 private:
  cudaEvent_t event_ = nullptr;
};

// While one is held, no other thread of this process takes or frees memory of the current device,
// makes or ends a stream of it, or launches a kernel that may not be loaded yet: all of these may
// wait for the whole device, which breaks a recording on any of its streams. The holder may take it
// again.
std::unique_lock<std::recursive_mutex> no_waiting_for_device();

// A recorded and instantiated sequence of launches.
class CudaGraph {
 public:
  CudaGraph() = default;
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  // Records what `launches` puts into the stream; nothing runs.
  template <typename Launches>
  void record(cudaStream_t stream, const Launches& launches) {
    const auto alone = no_waiting_for_device();
    begin(stream);
    try {
      launches();
    } catch (...) {
      abandon(stream);
      throw;
    }
    end(stream);
  }
  void launch(cudaStream_t stream) const;

 private:
  static void begin(cudaStream_t stream);
  static void abandon(cudaStream_t stream) noexcept;
  void end(cudaStream_t stream);

  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace inferno::engine
