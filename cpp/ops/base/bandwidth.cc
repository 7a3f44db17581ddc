#include "ops/base/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>

#include "ops/base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inferno::ops {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::size_t kChunkWords = kChunkBytes / 8;
// One measurement: long beside the waking of a thread, short beside the time slices of a busy
// machine.
constexpr std::size_t kSpanChunks = 64;
constexpr std::size_t kPrefetchBytes = 4096;  // how far ahead; the best of what was tried

// Memory of its own, touched, in huge pages where the system gives them.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    ::madvise(data_, bytes, MADV_HUGEPAGE);
    std::fill_n(static_cast<unsigned char*>(data_), bytes, static_cast<unsigned char>(1));
  }
  ~Buffer() { ::munmap(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const std::uint64_t* words() const { return static_cast<const std::uint64_t*>(data_); }

 private:
  void* data_;
  std::size_t bytes_;
};

// Reads whole cache lines and folds them into one word, so that no read can be left out.
std::uint64_t read_lines(const std::uint64_t* words, std::size_t num_lines) {
#if defined(__x86_64__)
  const auto* vectors = reinterpret_cast<const __m128i*>(words);
  __m128i folds[4] = {};
  for (std::size_t line = 0; line < num_lines; ++line) {
    const __m128i* lane = vectors + line * 4;
    _mm_prefetch(reinterpret_cast<const char*>(lane) + kPrefetchBytes, _MM_HINT_T0);
    for (int i = 0; i < 4; ++i) folds[i] = _mm_xor_si128(folds[i], _mm_load_si128(lane + i));
  }
  const __m128i fold =
      _mm_xor_si128(_mm_xor_si128(folds[0], folds[1]), _mm_xor_si128(folds[2], folds[3]));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(fold));
#else
  std::uint64_t fold = 0;
  for (std::size_t i = 0; i < num_lines * 8; ++i) fold ^= words[i];
  return fold;
#endif
}

}  // namespace

double measure_read_bandwidth(std::size_t bytes, std::uint32_t num_threads, std::uint32_t rounds) {
  const std::size_t num_chunks = bytes / kChunkBytes;
  if (num_chunks == 0 || num_threads == 0 || rounds == 0) {
    throw std::invalid_argument("other: measure_read_bandwidth: expected 1 MiB, 1 thread, 1 round");
  }
  const Buffer buffer(num_chunks * kChunkBytes);
  ThreadPool threads(num_threads);
  std::atomic<std::uint64_t> fold{0};
  double best = 0.0;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    for (std::size_t first = 0; first < num_chunks; first += kSpanChunks) {
      const std::size_t count = std::min(kSpanChunks, num_chunks - first);
      const auto start = std::chrono::steady_clock::now();
      threads.parallel_for(
          static_cast<std::uint32_t>(count), [&](std::uint32_t chunk, std::uint32_t) {
            fold ^= read_lines(buffer.words() + (first + chunk) * kChunkWords, kChunkBytes / 64);
          });
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      // A last, shorter span would not be comparable.
      if (count < kSpanChunks && first > 0) continue;
      best = std::max(best, static_cast<double>(count * kChunkBytes) / elapsed.count());
    }
  }
  return best;
}

}  // namespace inferno::ops
