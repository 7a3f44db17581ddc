// A GPU as a device: row-major weights of 16 bits or quantized ones, one stream, the ops of
// ops/*_cuda.h. It is the one whose context is the calling thread's when the backend is made, and
// it is used and dropped on that thread.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/backend.h"
#include "engine/cuda/cuda_memory.h"
#include "engine/cuda/cuda_step.h"
#include "engine/cuda/cuda_uploader.h"
#include "ops/base/thread_pool.h"
#include "ops/cuda/cuda_op.h"

namespace inferno::engine {

class CudaSizes : public Sizes {
 public:
  // Without a card at hand, of one that has the kernels for codes.
  explicit CudaSizes(bool has_code_kernels = true) : has_code_kernels_(has_code_kernels) {}
  std::uint64_t matrix_bytes(const ops::WeightShape& matrix) const override;
  std::uint64_t workspace_bytes(const DecoderSpec& spec, const ModelLimits& limits) const override;
  bool reads(MatrixRole role, const WeightFormat& format) const override;
  void check(const DecoderSpec& spec, const ModelLimits& limits) const override;

 private:
  bool has_code_kernels_;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const DeviceOptions& options);

  const Sizes& sizes() const override { return sizes_; }
  MemoryPool& pool() override { return *pool_; }
  const MemoryPool& pool() const override { return *pool_; }
  void write_rows(const MatrixRows& target, const ops::RowSource& source) override;
  void randomise_rows(const MatrixRows& target, const NormalTable& normal,
                      std::uint64_t key) override;
  void write_vector(float* target, std::span<const float> values) override;
  void finish_writes() override;
  std::unique_ptr<Forward> make_forward(const ForwardParts& parts) override;
  std::uint32_t max_in_flight() const override { return 2; }

 private:
  ops::cuda::CudaOp op() const;

  bool deterministic_;
  bool reference_attention_;
  bool dependent_launch_;  // the card and this build are Hopper's
  CudaSizes sizes_;
  ThreadPool threads_;
  std::uint32_t num_sms_ = 0;
  // Made on the device, in this order.
  std::unique_ptr<CudaStream> stream_;
  std::unique_ptr<StepClock> clock_;
  std::unique_ptr<MemoryPool> pool_;
  std::unique_ptr<CudaUploader> uploader_;
  PoolRange normal_table_;  // of random weights, while they are being made
  ops::Dtype normal_dtype_ = ops::Dtype::BF16;
};

}  // namespace inferno::engine
