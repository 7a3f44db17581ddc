#include "engine/memory/memory_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

// Below this, telling the kernel costs more than the pages are worth.
constexpr std::uint64_t kReturnPagesFrom = 1 << 20;
constexpr std::uint64_t kPage = 4096;

class HostReservation : public Reservation {
 public:
  using Reservation::Reservation;
  ~HostReservation() override { munmap(data(), bytes()); }
  void forget(std::uint64_t offset, std::uint64_t bytes) override {
    if (bytes < kReturnPagesFrom) return;
    const std::uint64_t first = (offset + kPage - 1) / kPage * kPage;
    const std::uint64_t last = (offset + bytes) / kPage * kPage;
    madvise(data() + first, last - first, MADV_DONTNEED);
  }
};

[[noreturn]] void throw_out_of_memory(std::uint64_t need, std::uint64_t have) {
  throw Error(ErrorCode::kOutOfMemory,
              "need " + std::to_string(need) + ", have " + std::to_string(have));
}

}  // namespace

std::uint64_t MemoryPool::round_up(std::uint64_t bytes) {
  bytes = std::max<std::uint64_t>(bytes, 1);
  if (bytes > std::numeric_limits<std::uint64_t>::max() - kAlignment) {
    return std::numeric_limits<std::uint64_t>::max() / kAlignment * kAlignment;
  }
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::unique_ptr<Reservation> reserve_host_memory(std::uint64_t bytes) {
  const std::uint64_t reserved = MemoryPool::round_up(bytes);
  void* base = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory,
                "need " + std::to_string(reserved) + ", the machine refuses to reserve it");
  }
  // Weights are read from end to end at every step: large pages save most of the address look-ups.
  // Only advice.
  madvise(base, reserved, MADV_HUGEPAGE);
  return std::make_unique<HostReservation>(static_cast<std::byte*>(base), reserved);
}

MemoryPool::MemoryPool(std::unique_ptr<Reservation> memory) : memory_(std::move(memory)) {
  stats_.reserved_bytes = memory_->bytes();
  free_.emplace(0, memory_->bytes());
}

MemoryPool::MemoryPool(std::uint64_t bytes) : MemoryPool(reserve_host_memory(bytes)) {}

std::byte* MemoryPool::allocate(std::uint64_t bytes) {
  const std::uint64_t need = round_up(bytes);
  std::uint64_t largest = 0;
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [offset, size] = *range;
    if (size < need) {
      largest = std::max(largest, size);
      continue;
    }
    taken_.emplace(offset, need);
    free_.erase(range);
    if (size > need) free_.emplace(offset + need, size - need);
    stats_.used_bytes += need;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.used_bytes);
    stats_.num_allocations += 1;
    return memory_->data() + offset;
  }
  throw_out_of_memory(need, largest);
}

std::vector<std::byte*> MemoryPool::pre_allocate_batch(std::span<const std::uint64_t> sizes) {
  std::vector<std::byte*> ranges;
  ranges.reserve(sizes.size());
  try {
    for (const std::uint64_t size : sizes) ranges.push_back(allocate(size));
  } catch (...) {
    for (std::byte* range : ranges) deallocate(range);
    throw;
  }
  return ranges;
}

void MemoryPool::deallocate(std::byte* range) {
  if (range == nullptr) return;
  const auto found = range < memory_->data()
                         ? taken_.end()
                         : taken_.find(static_cast<std::uint64_t>(range - memory_->data()));
  if (found == taken_.end()) {
    throw Error(ErrorCode::kOther, "this address was not taken from the memory pool");
  }
  auto [offset, size] = *found;
  taken_.erase(found);
  stats_.used_bytes -= size;
  memory_->forget(offset, size);
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += size;
      return;
    }
  }
  free_.emplace(offset, size);
}

PoolRange& PoolRange::operator=(PoolRange&& other) noexcept {
  if (this == &other) return *this;
  reset();
  pool_ = std::exchange(other.pool_, nullptr);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void PoolRange::reset() noexcept {
  if (data_ == nullptr) return;
  // It came from this pool, so this cannot throw but for the host's own memory; a destructor may
  // not throw.
  try {
    pool_->deallocate(data_);
  } catch (const std::exception&) {
    // The range stays taken.
  }
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace inferno::engine
