// A device's memory: one reservation at the start; weights, KV blocks and workspace come from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

namespace inferno::engine {

struct MemoryStats {
  std::uint64_t reserved_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::uint64_t peak_bytes = 0;
  std::uint64_t num_allocations = 0;  // since the start; never falls
};

// One range of a device's memory, held until it is destroyed.
class Reservation {
 public:
  Reservation(std::byte* data, std::uint64_t bytes) : data_(data), bytes_(bytes) {}
  virtual ~Reservation() = default;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }
  // Contents of this part are not needed any more; a hint.
  virtual void forget(std::uint64_t /*offset*/, std::uint64_t /*bytes*/) {}

 private:
  std::byte* data_;
  std::uint64_t bytes_;
};

// Address space; pages are taken when they are first touched. Throws out_of_memory if the machine
// refuses.
std::unique_ptr<Reservation> reserve_host_memory(std::uint64_t bytes);

// First fit over an address-ordered list of free ranges; neighbours merge when they are given back.
// For few, long-lived ranges (a model takes three), so the search is not a cost. Not thread-safe:
// it belongs to one context.
class MemoryPool {
 public:
  // Every range starts at a multiple of it and takes a multiple of it.
  static constexpr std::uint64_t kAlignment = 256;

  // Of a reservation whose size is a multiple of kAlignment.
  explicit MemoryPool(std::unique_ptr<Reservation> memory);
  // Of `bytes` (rounded up to kAlignment) of the host's memory.
  explicit MemoryPool(std::uint64_t bytes);

  // A range of at least `bytes` (0 counts as 1). Contents are undefined.
  // Throws `out_of_memory: need X, have Y`, Y being the largest free range.
  std::byte* allocate(std::uint64_t bytes);

  // One range for each size, all or none.
  std::vector<std::byte*> pre_allocate_batch(std::span<const std::uint64_t> sizes);

  // Gives a range back. Null is nothing; an address that is not the start of a taken range throws
  // other.
  void deallocate(std::byte* range);

  MemoryStats stats() const { return stats_; }

  // What allocate takes for `bytes`.
  static std::uint64_t round_up(std::uint64_t bytes);

 private:
  std::unique_ptr<Reservation> memory_;
  std::map<std::uint64_t, std::uint64_t> free_;   // offset -> bytes
  std::map<std::uint64_t, std::uint64_t> taken_;  // offset -> bytes
  MemoryStats stats_;
};

// A range that gives itself back.
class PoolRange {
 public:
  PoolRange() = default;
  PoolRange(MemoryPool& pool, std::uint64_t bytes)
      : pool_(&pool), data_(pool.allocate(bytes)), bytes_(bytes) {}
  PoolRange(PoolRange&& other) noexcept { *this = static_cast<PoolRange&&>(other); }
  PoolRange& operator=(PoolRange&& other) noexcept;
  ~PoolRange() { reset(); }

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }
  void reset() noexcept;

 private:
  MemoryPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

}  // namespace inferno::engine
