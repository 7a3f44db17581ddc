#include "ops/base/thread_pool.h"

#include <chrono>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inferno {

namespace {

// The ops of one step follow each other within a few microseconds, and waking a sleeping thread
// takes about as long: so a thread looks for the next job this long before it sleeps.
constexpr std::chrono::microseconds kSpin{6};

void pause() noexcept {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits for `done` actively for at most kSpin; says whether it came true.
template <typename Done>
bool spin_until(Done done) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 8; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(std::uint32_t num_threads) {
  if (num_threads == 0) throw std::invalid_argument("other: a thread pool needs at least 1 thread");
  shares_ = std::make_unique<Share[]>(num_threads);
  workers_.reserve(num_threads - 1);
  try {
    for (std::uint32_t thread = 1; thread < num_threads; ++thread) {
      workers_.emplace_back([this, thread] { work(thread); });
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  work_ready_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(Job job, std::uint32_t num_chunks) {
  if (num_chunks == 0) return;
  if (num_chunks == 1 || workers_.empty()) {
    for (std::uint32_t chunk = 0; chunk < num_chunks; ++chunk) job.call(job.object, chunk, 0);
    return;
  }
  job_ = job;
  share_out(num_chunks);
  unfinished_.store(num_chunks);
  unclaimed_.store(num_chunks);  // from here on workers may claim chunks
  // Either this sees the sleeper, or the sleeper, which counts itself first, sees the chunks.
  if (sleeping_workers_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    work_ready_.notify_all();
  }
  while (run_one_chunk(0)) {
  }
  wait_for_last_chunk();
  if (failed_.load()) {
    const std::lock_guard lock(mutex_);
    failed_.store(false);
    std::rethrow_exception(std::exchange(exception_, nullptr));
  }
}

void ThreadPool::share_out(std::uint32_t num_chunks) {
  const std::uint32_t num_shares = num_threads();
  std::uint32_t first = 0;
  for (std::uint32_t thread = 0; thread < num_shares; ++thread) {
    const std::uint32_t end = first + num_chunks / num_shares + (thread < num_chunks % num_shares);
    shares_[thread].set(first, end);
    first = end;
  }
}

void ThreadPool::Share::set(std::uint32_t first, std::uint32_t end) {
  range.store(std::uint64_t{end} << 32 | first);
}

bool ThreadPool::Share::take_first(std::uint32_t& chunk) {
  std::uint64_t left = range.load();
  do {
    chunk = static_cast<std::uint32_t>(left);
    if (chunk == left >> 32) return false;
  } while (!range.compare_exchange_weak(left, left + 1));
  return true;
}

bool ThreadPool::Share::take_last(std::uint32_t& chunk) {
  std::uint64_t left = range.load();
  do {
    if (static_cast<std::uint32_t>(left) == left >> 32) return false;
    chunk = static_cast<std::uint32_t>(left >> 32) - 1;
  } while (!range.compare_exchange_weak(left, left - (std::uint64_t{1} << 32)));
  return true;
}

// Who has claimed a chunk finds one: there are as many in the shares as claims were left.
std::uint32_t ThreadPool::take_chunk(std::uint32_t thread) {
  std::uint32_t chunk = 0;
  while (!shares_[thread].take_first(chunk)) {
    bool found = false;
    for (std::uint32_t i = 1; i < num_threads() && !found; ++i) {
      found = shares_[(thread + i) % num_threads()].take_last(chunk);
    }
    if (found) break;
  }
  return chunk;
}

// Claims one chunk and runs it; false if none is left. The job may be read only after a claim: the
// claimed chunk keeps the caller from putting the next job in its place.
bool ThreadPool::run_one_chunk(std::uint32_t thread) {
  std::uint32_t left = unclaimed_.load();
  do {
    if (left == 0) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1));
  if (!failed_.load(std::memory_order_relaxed)) {
    try {
      job_.call(job_.object, take_chunk(thread), thread);
    } catch (...) {
      keep_exception();
    }
  }
  if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
    { const std::lock_guard lock(mutex_); }
    job_done_.notify_one();
  }
  return true;
}

void ThreadPool::keep_exception() noexcept {
  const std::lock_guard lock(mutex_);
  if (!exception_) exception_ = std::current_exception();
  failed_.store(true);
}

void ThreadPool::work(std::uint32_t thread) {
  while (!stopping_.load()) {
    if (!run_one_chunk(thread)) wait_for_work();
  }
}

void ThreadPool::wait_for_work() {
  const auto ready = [this] { return unclaimed_.load() > 0 || stopping_.load(); };
  if (spin_until(ready)) return;
  std::unique_lock lock(mutex_);
  sleeping_workers_.fetch_add(1);
  work_ready_.wait(lock, ready);
  sleeping_workers_.fetch_sub(1);
}

void ThreadPool::wait_for_last_chunk() {
  const auto done = [this] { return unfinished_.load() == 0; };
  if (spin_until(done)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_.store(true);
  job_done_.wait(lock, done);
  caller_sleeps_.store(false);
}

}  // namespace inferno
