// Goal: every chunk is run once, errors arrive, idle threads sleep. Method: many jobs of many
// sizes.
#include "ops/base/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace inferno {

namespace {

double process_cpu_seconds() {
  timespec time;
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

TEST_CASE("every chunk of every job is run exactly once") {
  for (const std::uint32_t num_threads : {1U, 2U, 3U, 8U}) {
    ThreadPool threads(num_threads);
    CHECK(threads.num_threads() == num_threads);
    for (std::uint32_t job = 0; job < 3000; ++job) {
      const std::uint32_t num_chunks = job % 37;
      std::vector<std::atomic<int>> runs(num_chunks);
      std::atomic<bool> threads_in_range{true};
      threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t thread) {
        runs[chunk].fetch_add(1);
        if (thread >= num_threads) threads_in_range = false;
      });
      REQUIRE(threads_in_range);
      for (const auto& count : runs) REQUIRE(count == 1);
    }
  }
}

TEST_CASE("workers take part, and what they wrote is seen by the caller") {
  ThreadPool threads(2);
  // Each chunk waits for the other one, so that one thread alone would never end.
  std::atomic<int> arrived{0};
  std::vector<std::uint32_t> seen(2, 99);
  threads.parallel_for(2, [&](std::uint32_t chunk, std::uint32_t thread) {
    seen[chunk] = thread;
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  CHECK(seen[0] + seen[1] == 1);
}

TEST_CASE("a thread takes neighbouring chunks, then what others have left, from their end") {
  constexpr std::uint32_t kChunks = 11;  // 6 and 5
  ThreadPool threads(2);
  for (int job = 0; job < 200; ++job) {
    std::atomic<int> arrived{0};
    std::vector<std::uint32_t> taken[2];
    threads.parallel_for(kChunks, [&](std::uint32_t chunk, std::uint32_t thread) {
      taken[thread].push_back(chunk);
      if (taken[thread].size() > 1) return;
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
    for (std::uint32_t thread = 0; thread < 2; ++thread) {
      std::uint32_t own = thread == 0 ? 0 : 6;
      const std::uint32_t own_end = thread == 0 ? 6 : kChunks;
      std::uint32_t other_end = thread == 0 ? kChunks : 6;
      for (const std::uint32_t chunk : taken[thread]) {
        if (chunk == own && own < own_end) {
          ++own;
        } else {
          REQUIRE(chunk == --other_end);
        }
      }
    }
  }
}

TEST_CASE("jobs that follow a pause wake the sleeping workers") {
  ThreadPool threads(3);
  for (int job = 0; job < 20; ++job) {
    std::this_thread::sleep_for(std::chrono::microseconds(200 * (job % 4)));
    std::atomic<int> runs{0};
    threads.parallel_for(5, [&](std::uint32_t, std::uint32_t) { runs.fetch_add(1); });
    REQUIRE(runs == 5);
  }
}

TEST_CASE("an exception reaches the caller and the pool stays usable") {
  for (const std::uint32_t num_threads : {1U, 4U}) {
    ThreadPool threads(num_threads);
    for (int job = 0; job < 200; ++job) {
      std::string text;
      try {
        threads.parallel_for(16, [](std::uint32_t chunk, std::uint32_t) {
          if (chunk % 5 == 3) throw std::runtime_error("chunk failed");
        });
      } catch (const std::runtime_error& error) {
        text = error.what();
      }
      REQUIRE(text == "chunk failed");
      std::atomic<int> runs{0};
      threads.parallel_for(16, [&](std::uint32_t, std::uint32_t) { runs.fetch_add(1); });
      REQUIRE(runs == 16);
    }
  }
}

TEST_CASE("idle threads use no processor time") {
  ThreadPool threads(4);
  threads.parallel_for(8, [](std::uint32_t, std::uint32_t) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // past the moment of looking for work
  const double before = process_cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(process_cpu_seconds() - before < 0.02);
}

TEST_CASE("a pool without threads is refused") {
  CHECK_THROWS_AS(ThreadPool(0), std::invalid_argument);
}

}  // namespace inferno
