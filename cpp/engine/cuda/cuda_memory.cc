#include "engine/cuda/cuda_memory.h"

#include <array>
#include <string>

#include "engine/base/error.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

constexpr std::size_t kMaxDevices = 64;  // beyond these, some share

// Contexts of several threads may share a card. Cards do not wait for each other.
std::recursive_mutex& device_waits() {
  static std::array<std::recursive_mutex, kMaxDevices> mutexes;
  int ordinal = 0;
  // An error stays for whoever asks next; the first mutex will do.
  if (cudaGetDevice(&ordinal) != cudaSuccess) ordinal = 0;
  return mutexes[static_cast<std::size_t>(ordinal) % kMaxDevices];
}

// Destructors below ignore what the runtime answers: after a sticky error it answers everything
// with that error, and the process is about to end.
class DeviceReservation : public Reservation {
 public:
  using Reservation::Reservation;
  ~DeviceReservation() override {
    const auto alone = no_waiting_for_device();
    cudaFree(data());
  }
};

}  // namespace

std::unique_lock<std::recursive_mutex> no_waiting_for_device() {
  return std::unique_lock(device_waits());
}

std::unique_ptr<Reservation> reserve_device_memory(std::uint64_t bytes) {
  const auto alone = no_waiting_for_device();
  const std::uint64_t reserved = MemoryPool::round_up(bytes);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, reserved);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw Error(ErrorCode::kOutOfMemory, "need " + std::to_string(reserved) + ", have " +
                                             std::to_string(free) + " (free on the GPU)");
  }
  check(status, "cudaMalloc");
  return std::make_unique<DeviceReservation>(static_cast<std::byte*>(data), reserved);
}

PinnedBuffer::PinnedBuffer(std::uint64_t bytes) : bytes_(bytes) {
  const auto alone = no_waiting_for_device();
  void* data = nullptr;
  check(cudaMallocHost(&data, bytes), "cudaMallocHost");
  data_ = static_cast<std::byte*>(data);
}

PinnedBuffer::~PinnedBuffer() {
  const auto alone = no_waiting_for_device();
  cudaFreeHost(data_);
}

CudaStream::CudaStream() {
  const auto alone = no_waiting_for_device();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

CudaStream::~CudaStream() {
  const auto alone = no_waiting_for_device();
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

CudaEvent::CudaEvent() {
  const auto alone = no_waiting_for_device();
  check(cudaEventCreate(&event_), "cudaEventCreate");
}

CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }

void CudaEvent::record(cudaStream_t stream) {
  check(cudaEventRecord(event_, stream), "cudaEventRecord");
}

bool CudaEvent::has_ended() {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaEventQuery");
  return true;
}

float CudaEvent::since(const CudaEvent& earlier) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, earlier.event_, event_), "cudaEventElapsedTime");
  return ms;
}

void CudaEvent::wait() { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

CudaGraph::~CudaGraph() {
  const auto alone = no_waiting_for_device();
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

void CudaGraph::begin(cudaStream_t stream) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

void CudaGraph::abandon(cudaStream_t stream) noexcept {
  cudaGraph_t recorded = nullptr;
  cudaStreamEndCapture(stream, &recorded);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  cudaGetLastError();
}

void CudaGraph::end(cudaStream_t stream) {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(stream, &recorded), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&graph_, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "cudaGraphInstantiate");
  check(cudaGraphUpload(graph_, stream), "cudaGraphUpload");
}

void CudaGraph::launch(cudaStream_t stream) const {
  check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch");
}

}  // namespace inferno::engine
