// Brings weights up through page-locked memory: while the copy engine fetches one part, threads
// make the next from the page cache.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "engine/backend.h"
#include "engine/cuda/cuda_memory.h"
#include "ops/base/thread_pool.h"

namespace inferno::engine {

class CudaUploader {
 public:
  CudaUploader(ThreadPool& threads, cudaStream_t stream) : threads_(threads), stream_(stream) {}

  // Rows of a matrix that is not quantized: converted, or dequantized.
  void upload_elements(const MatrixRows& target, const ops::RowSource& source);
  // Of one that is; elements are quantized.
  void upload_strips(const MatrixRows& target, const ops::RowSource& source);
  // Waits, and gives the page-locked memory back.
  void finish();

 private:
  struct Part {
    std::unique_ptr<PinnedBuffer> buffer;
    CudaEvent fetched;
  };
  Part& next_part();
  // To the device, what stands in a part from `offset` on.
  void copy(std::byte* target, const Part& part, std::uint64_t offset, std::uint64_t bytes);
  void upload_same(std::byte* target, const std::byte* source, std::uint64_t bytes);

  ThreadPool& threads_;
  cudaStream_t stream_;
  std::array<Part, 3> parts_;
  std::size_t next_ = 0;
};

}  // namespace inferno::engine
