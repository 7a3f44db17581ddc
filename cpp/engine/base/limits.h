// What a device is made with, what a model may take of it, and what it took.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/base/simd/isa.h"

namespace inferno::engine {

struct ModelLimits {
  std::uint32_t block_size = 0;              // positions of one KV block
  std::uint64_t kv_bytes = 0;                // for KV blocks
  std::uint32_t max_batch_size = 0;          // sequences in one step
  std::uint32_t max_step_tokens = 0;         // tokens in one step
  std::uint32_t max_seq_len = 0;             // positions of one sequence
  std::vector<std::uint32_t> end_token_ids;  // held back up to a seat's end_from

  std::uint32_t max_blocks() const { return (max_seq_len + block_size - 1) / block_size; }
};

struct ModelPlan {
  std::uint32_t model = 0;  // the handle for later calls
  std::uint32_t num_blocks = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t kv_bytes = 0;
  std::uint64_t workspace_bytes = 0;
};

// What a pool must have for a model: the sum of these, with as many blocks as wanted.
struct MemoryNeed {
  std::uint64_t weight_bytes = 0;
  std::uint64_t kv_bytes_per_block = 0;
  std::uint64_t workspace_bytes = 0;
};

enum class BackendKind : std::uint8_t { Cpu, Cuda };

// Which kernels attend: Flash the fastest that the device has, Reference the portable ones, one
// query tile at a time, to hold the others against. Auto is Flash.
enum class AttentionBackend : std::uint8_t { Auto, Flash, Reference };

struct DeviceOptions {
  std::uint32_t num_threads = 1;      // of the CPU backend; of loading on a GPU
  ops::Isa isa = ops::Isa::Portable;  // of the CPU backend
  std::uint64_t pool_bytes = 0;       // the one reservation
  BackendKind backend = BackendKind::Cpu;
  AttentionBackend attention = AttentionBackend::Auto;
  bool deterministic = false;  // of a GPU: same tokens alone and in any batch; the CPU always is
};

}  // namespace inferno::engine
