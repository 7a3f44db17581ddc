// Counts heap allocations for the tests that forbid them. A file of its own: no caller may see the
// operators' bodies, or the compiler pairs its own new with our free and warns.
#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/testing/test_model.h"

namespace {
std::atomic<std::uint64_t> count{0};
}

namespace inferno::engine::test {
std::uint64_t num_news() { return count.load(); }
}  // namespace inferno::engine::test

void* operator new(std::size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  count.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
