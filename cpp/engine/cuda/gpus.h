// Which GPUs the CUDA runtime sees, and what it says of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace inferno::engine {

// Whether this build has the CUDA backend.
bool has_cuda() noexcept;

struct GpuKind {
  std::string bus_id;  // PCI, "00000000:1B:00.0"
  std::string name;
  std::uint32_t major;  // compute capability
  std::uint32_t minor;
};

struct GpuMemory {
  std::uint64_t total_bytes;
  std::uint64_t free_bytes;
};

// By the runtime's ordinal; empty where the machine has no GPU.
// Throws other, saying why, where there is no driver or one too old, and in a build without CUDA.
std::vector<GpuKind> gpu_kinds();

// Makes a CUDA context on the card. Throws as above.
GpuMemory gpu_memory(std::uint32_t ordinal);

}  // namespace inferno::engine
