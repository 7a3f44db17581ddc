// The ceiling beside decode figures: how fast this machine reads memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inferno::ops {

// Read bandwidth in bytes/s: `num_threads` threads read `bytes` of memory of their own, from front
// to back, `rounds` times; the fastest span of 64 MiB counts, because other processes only ever
// slow one down. `bytes` should be many times the last cache (1 GiB), at least 1 MiB. Throws
// std::bad_alloc if the memory cannot be had, std::invalid_argument for too few bytes, no threads
// or no rounds.
double measure_read_bandwidth(std::size_t bytes, std::uint32_t num_threads, std::uint32_t rounds);

}  // namespace inferno::ops
