// The CPU as a device: packed weights, a thread pool, the ops of ops/*.h.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/backend.h"
#include "ops/base/op_context.h"
#include "ops/base/thread_pool.h"

namespace inferno::engine {

class CpuSizes : public Sizes {
 public:
  // Throws other for a number of threads out of range.
  explicit CpuSizes(std::uint32_t num_threads);
  std::uint64_t matrix_bytes(const ops::WeightShape& matrix) const override;
  std::uint64_t workspace_bytes(const DecoderSpec& spec, const ModelLimits& limits) const override;
  bool reads(MatrixRole, const WeightFormat&) const override { return true; }
  void check(const DecoderSpec&, const ModelLimits&) const override {}

 private:
  std::uint32_t num_threads_;
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const DeviceOptions& options);

  const Sizes& sizes() const override { return sizes_; }
  MemoryPool& pool() override { return pool_; }
  const MemoryPool& pool() const override { return pool_; }
  void write_rows(const MatrixRows& target, const ops::RowSource& source) override;
  void randomise_rows(const MatrixRows& target, const NormalTable& normal,
                      std::uint64_t key) override;
  void write_vector(float* target, std::span<const float> values) override;
  std::unique_ptr<Forward> make_forward(const ForwardParts& parts) override;
  std::uint32_t max_in_flight() const override { return 1; }
  ops::Isa isa() const override { return isa_; }

 private:
  // For ops that need no scratch.
  ops::OpContext op_context() { return {threads_, isa_, {}}; }

  ops::Isa isa_;
  ops::Isa attention_isa_;
  CpuSizes sizes_;
  MemoryPool pool_;
  ThreadPool threads_;
};

}  // namespace inferno::engine
