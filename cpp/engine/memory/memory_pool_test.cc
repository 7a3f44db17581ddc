// Goal: ranges never overlap, memory given back can be had again, and exhaustion is an error with
// figures. Method: small pools by hand, then thousands of random calls against a shadow of what is
// taken.
#include "engine/memory/memory_pool.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

std::string error_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

TEST_CASE("ranges are aligned and counted in whole units") {
  MemoryPool pool(1000);
  CHECK(pool.stats().reserved_bytes == 1024);
  std::byte* a = pool.allocate(1);
  std::byte* b = pool.allocate(257);
  std::byte* c = pool.allocate(0);
  for (std::byte* range : {a, b, c}) {
    CHECK(reinterpret_cast<std::uintptr_t>(range) % MemoryPool::kAlignment == 0);
  }
  CHECK(b - a == 256);
  CHECK(c - b == 512);
  CHECK(pool.stats().used_bytes == 1024);
  CHECK(pool.stats().num_allocations == 3);
  std::memset(a, 1, 1024);
}

TEST_CASE("exhaustion says what was needed and what is there") {
  MemoryPool pool(1024);
  pool.allocate(512);
  CHECK(error_of([&] { pool.allocate(1000); }) == "out_of_memory: need 1024, have 512");
  pool.allocate(512);
  CHECK(error_of([&] { pool.allocate(1); }) == "out_of_memory: need 256, have 0");
  CHECK(error_of([&] {
          pool.allocate(std::numeric_limits<std::uint64_t>::max());
        }).starts_with("out_of_memory: "));
  CHECK(error_of([] { MemoryPool(std::uint64_t{1} << 60); }).starts_with("out_of_memory: need "));
  CHECK(error_of([] {
          MemoryPool(std::numeric_limits<std::uint64_t>::max());
        }).starts_with("out_of_memory: need "));
}

TEST_CASE("neighbours merge in every order") {
  for (const std::array<int, 3> order : {std::array{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {2, 1, 0}}) {
    MemoryPool pool(768);
    std::array<std::byte*, 3> ranges{};
    for (auto& range : ranges) range = pool.allocate(256);
    for (const int i : order) pool.deallocate(ranges[static_cast<std::size_t>(i)]);
    CHECK(pool.stats().used_bytes == 0);
    CHECK(pool.stats().peak_bytes == 768);
    CHECK(pool.allocate(768) == ranges[0]);
  }
}

TEST_CASE("a batch is taken whole or not at all") {
  MemoryPool pool(2048);
  const std::array<std::uint64_t, 3> fits = {256, 512, 1};
  CHECK(pool.pre_allocate_batch(fits).size() == 3);
  CHECK(pool.stats().used_bytes == 1024);
  const std::array<std::uint64_t, 3> too_much = {256, 512, 512};
  CHECK(error_of([&] { pool.pre_allocate_batch(too_much); }) ==
        "out_of_memory: need 512, have 256");
  CHECK(pool.stats().used_bytes == 1024);
}

TEST_CASE("refuses to take back what it did not give") {
  MemoryPool pool(4096);
  std::byte* range = pool.allocate(512);
  CHECK(error_of([&] { pool.deallocate(range + 256); }).starts_with("other: "));
  CHECK(error_of([&] { pool.deallocate(range - 256); }).starts_with("other: "));
  pool.deallocate(nullptr);
  pool.deallocate(range);
  CHECK(error_of([&] { pool.deallocate(range); }).starts_with("other: "));
}

TEST_CASE("large ranges give their pages back to the machine") {
  MemoryPool pool(8 << 20);
  std::byte* range = pool.allocate(8 << 20);
  range[5000] = std::byte{7};
  pool.deallocate(range);
  CHECK(pool.allocate(8 << 20)[5000] == std::byte{0});
}

TEST_CASE("a range gives itself back once") {
  MemoryPool pool(1024);
  {
    PoolRange a(pool, 300);
    CHECK(a.bytes() == 300);
    PoolRange b = std::move(a);
    CHECK(a.data() == nullptr);
    a = PoolRange(pool, 10);
    a = std::move(b);
    CHECK(pool.stats().used_bytes == 512);
    PoolRange& self = a;
    a = std::move(self);
    CHECK(a.data() != nullptr);
  }
  CHECK(pool.stats().used_bytes == 0);
}

TEST_CASE("random use keeps ranges apart and the books right") {
  std::mt19937 random(3);
  MemoryPool pool(1 << 20);
  struct Taken {
    std::byte* data;
    std::size_t bytes;
    std::uint8_t mark;
  };
  std::vector<Taken> taken;
  std::uint64_t used = 0;
  for (int round = 0; round < 5000; ++round) {
    if (random() % 2 == 0 && !taken.empty()) {
      const std::size_t i = random() % taken.size();
      REQUIRE(std::all_of(taken[i].data, taken[i].data + taken[i].bytes,
                          [&](std::byte b) { return b == std::byte{taken[i].mark}; }));
      pool.deallocate(taken[i].data);
      used -= MemoryPool::round_up(taken[i].bytes);
      taken[i] = taken.back();
      taken.pop_back();
    } else {
      const std::size_t bytes = random() % 40000 + 1;
      const auto mark = static_cast<std::uint8_t>(random());
      if (error_of([&] {
            std::byte* data = pool.allocate(bytes);
            std::memset(data, mark, bytes);
            taken.push_back({data, bytes, mark});
            used += MemoryPool::round_up(bytes);
          }) != "none") {
        CHECK(used > (1 << 19));
      }
    }
    REQUIRE(pool.stats().used_bytes == used);
  }
}

}  // namespace
}  // namespace inferno::engine
