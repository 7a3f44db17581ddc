// Which GPUs the CUDA runtime sees.
#pragma once

#include <string>
#include <vector>

namespace inferno::engine {

// Whether this build has the CUDA backend.
bool has_cuda() noexcept;

// PCI bus ids ("00000000:1B:00.0"), by the runtime's ordinal; empty where the machine has no GPU.
// Throws other, saying why, where there is no driver or one too old, and in a build without CUDA.
std::vector<std::string> gpu_bus_ids();

}  // namespace inferno::engine
