// The threads of one CPU device: they share out the chunks of one job at a time and sleep between
// jobs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace inferno {

class ThreadPool {
 public:
  // The caller of parallel_for is thread 0, so num_threads - 1 workers are started. Throws
  // std::invalid_argument for 0 threads and std::system_error if a thread cannot be started.
  explicit ThreadPool(std::uint32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::uint32_t num_threads() const noexcept {
    return static_cast<std::uint32_t>(workers_.size()) + 1;
  }

  // Calls fn(chunk, thread) once for each chunk in [0, num_chunks), on any threads, and returns
  // when all are done. Each thread has neighbouring chunks, which it takes one after the other, so
  // that what it fetches ahead is its own; then it takes what others have left. So a chunk's result
  // must not depend on `thread` (an index below num_threads(), for scratch memory). Allocates
  // nothing. The first exception that a chunk throws is rethrown here; chunks not begun by then are
  // left out. One caller at a time; not to be called from inside fn.
  template <typename Fn>
  void parallel_for(std::uint32_t num_chunks, Fn&& fn) {
    using Plain = std::remove_reference_t<Fn>;
    run({[](const void* object, std::uint32_t chunk, std::uint32_t thread) {
           (*const_cast<Plain*>(static_cast<const Plain*>(object)))(chunk, thread);
         },
         std::addressof(fn)},
        num_chunks);
  }

 private:
  struct Job {
    void (*call)(const void* object, std::uint32_t chunk, std::uint32_t thread) = nullptr;
    const void* object = nullptr;
  };

  void run(Job job, std::uint32_t num_chunks);
  void work(std::uint32_t thread);
  void share_out(std::uint32_t num_chunks);
  bool run_one_chunk(std::uint32_t thread);
  std::uint32_t take_chunk(std::uint32_t thread);
  void wait_for_work();
  void wait_for_last_chunk();
  void keep_exception() noexcept;
  void stop() noexcept;

  // Neighbouring chunks that a thread is to run: its own from the first one on, others' from the
  // last one. A cache line each: its thread writes it for every chunk.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> range{0};  // the first in the lower half, the end in the upper one

    void set(std::uint32_t first, std::uint32_t end);
    bool take_first(std::uint32_t& chunk);
    bool take_last(std::uint32_t& chunk);
  };
  std::unique_ptr<Share[]> shares_;  // [num_threads]

  // Written by the caller before it publishes chunks; stable while any claimed chunk is unfinished.
  Job job_;

  // A cache line each: every thread writes them for every chunk.
  alignas(64) std::atomic<std::uint32_t> unclaimed_{0};   // chunks of the job not yet begun
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};  // chunks of the job not yet done
  alignas(64) std::atomic<std::uint32_t> sleeping_workers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable job_done_;
  std::exception_ptr exception_;  // guarded by mutex_
  std::vector<std::thread> workers_;
};

}  // namespace inferno
