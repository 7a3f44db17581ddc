// The ceiling beside decode figures: how fast this machine reads memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inferno::ops {

// Sustained read bandwidth in bytes/s: `num_threads` threads read `bytes` of memory of their own
// once in each of `rounds` rounds; the best round counts. `bytes` should be many times the last
// cache (1 GiB). Throws std::bad_alloc if the memory cannot be had, std::invalid_argument for 0
// bytes, threads or rounds.
double measure_read_bandwidth(std::size_t bytes, std::uint32_t num_threads, std::uint32_t rounds);

}  // namespace inferno::ops
