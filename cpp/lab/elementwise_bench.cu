// Times the ops of elementwise_cuda.h, the sampler and the random fill on the shapes of
// Llama-3.1-8B: launches chained in a graph, as a step chains them, on buffers in rotation so that
// the L2 does not answer for the memory. Median of graphs.
//
//   elementwise_bench [measured peak in TB/s, 4.54 by default]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "ops/cuda_device.cuh"
#include "ops/elementwise_cuda.h"
#include "ops/random_fill_cuda.h"
#include "ops/sample_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kHidden = 4096;
constexpr std::uint32_t kHeads = 32;
constexpr std::uint32_t kKvHeads = 8;
constexpr std::uint32_t kHeadDim = 128;
constexpr std::uint32_t kIntermediate = 14336;
constexpr std::uint32_t kVocab = 128256;
constexpr std::uint32_t kMaxTokens = 16384;
constexpr std::uint32_t kMaxRows = 256;
constexpr std::size_t kArenaBytes = std::size_t{6} << 30;
constexpr std::size_t kRotatedBytes = 400'000'000;  // several times the L2

// Inputs and outputs come from one block of memory; the rotation begins anew at its end.
class Arena {
 public:
  Arena() { check(cudaMalloc(&memory_, kArenaBytes), "cudaMalloc"); }
  void* data() const { return memory_; }
  // `bytes` for launch `index` of those that rotate.
  template <typename T>
  T* at(std::size_t bytes, std::size_t index) const {
    const std::size_t stride = (bytes + 255) / 256 * 256;
    const std::size_t sets =
        std::clamp<std::size_t>(kRotatedBytes / stride + 1, 2, kArenaBytes / stride);
    return reinterpret_cast<T*>(static_cast<char*>(memory_) + index % sets * stride);
  }

 private:
  void* memory_ = nullptr;
};

// Normal logits of deviation 2, and at the same time valid elements of 16 bits.
__global__ void fill_normal(float* values, std::size_t count) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    std::uint64_t x = (i + 1) * 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    const float u = static_cast<float>((x >> 40) + 1) * 0x1p-24F;
    const float angle = static_cast<float>(x & 0xFFFFFF) * 0x1p-24F * 6.2831853F;
    values[i] = 2 * sqrtf(-2 * logf(u)) * cosf(angle);
  }
}

template <typename T>
T* device_copy(const std::vector<T>& values) {
  void* copy = nullptr;
  check(cudaMalloc(&copy, values.size() * sizeof(T)), "cudaMalloc");
  check(cudaMemcpy(copy, values.data(), values.size() * sizeof(T), cudaMemcpyDefault),
        "cudaMemcpy");
  return static_cast<T*>(copy);
}

class Bench {
 public:
  explicit Bench(double peak) : peak_(peak) {
    int num_sms = 0;
    int major = 0;
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0), "attribute");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "attribute");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    op_ = {stream, static_cast<std::uint32_t>(num_sms), major == 9};
    fill_normal<<<1056, 512, 0, stream>>>(static_cast<float*>(arena_.data()), kArenaBytes / 4);
    check(cudaStreamSynchronize(stream), "fill");
  }

  const CudaOp& op() const { return op_; }
  const Arena& arena() const { return arena_; }

  // launch_one(i) is the i-th of a chain; `bytes` are what it moves.
  void time(const char* name, std::size_t size, double bytes,
            const std::function<void(std::size_t)>& launch_one) {
    const std::size_t chain = bytes < 1e8 ? 200 : 20;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    check(cudaStreamBeginCapture(op_.stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (std::size_t i = 0; i < chain; ++i) launch_one(i);
    check(cudaStreamEndCapture(op_.stream, &graph), "capture");
    check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    std::vector<float> times;
    for (int run = 0; run < 12; ++run) {
      check(cudaEventRecord(begin_, op_.stream), "cudaEventRecord");
      check(cudaGraphLaunch(exec, op_.stream), "cudaGraphLaunch");
      check(cudaEventRecord(end_, op_.stream), "cudaEventRecord");
      check(cudaStreamSynchronize(op_.stream), "cudaStreamSynchronize");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
      if (run >= 2) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    const double seconds = times[times.size() / 2] * 1e-3 / static_cast<double>(chain);
    std::printf("%-28s %6zu %9.2f us %8.0f GB/s %5.1f %%\n", name, size, seconds * 1e6,
                bytes / seconds * 1e-9, bytes / seconds / peak_ * 100);
    check(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }

 private:
  double peak_;
  CudaOp op_{};
  Arena arena_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

void bench_embed(Bench& bench, std::uint32_t tokens) {
  std::vector<std::uint32_t> ids(kMaxTokens);
  for (std::uint32_t i = 0; i < kMaxTokens; ++i) ids[i] = i * 7919 % kVocab;
  static const std::uint32_t* const ids_cuda = device_copy(ids);
  static const std::uint32_t* const seats =
      device_copy(std::vector<std::uint32_t>(kMaxTokens, kNoSeat));
  static const float* const floats = device_copy(std::vector<float>(kHidden, 0.5F));
  static void* const table = device_copy(std::vector<std::uint16_t>(kVocab * kHidden));
  const std::size_t elements = std::size_t{tokens} * kHidden;
  const std::size_t bytes = elements * 6 + std::size_t{tokens} * kHeadDim * 4;
  bench.time("embed", tokens, static_cast<double>(bytes + elements * 2), [&](std::size_t i) {
    char* out = bench.arena().at<char>(bytes, i);
    embed_cuda(bench.op(), {.table = {table, kVocab, kHidden, Dtype::BF16},
                            .token_ids = ids_cuda,
                            .feed_seats = seats,
                            .sampled_ids = ids_cuda,
                            .num_tokens = tokens,
                            .positions = ids_cuda,
                            .inv_freq = floats,
                            .head_dim = kHeadDim,
                            .norm_weight = floats,
                            .eps = 1e-5F,
                            .x = reinterpret_cast<float*>(out),
                            .h = out + elements * 4,
                            .cos_sin = reinterpret_cast<float*>(out + elements * 6)});
  });
}

void bench_rms_norm(Bench& bench, std::uint32_t tokens) {
  static const float* const weight = device_copy(std::vector<float>(kHidden, 0.5F));
  const std::size_t elements = std::size_t{tokens} * kHidden;
  bench.time("rms_norm", tokens, static_cast<double>(elements * 6), [&](std::size_t i) {
    auto* x = bench.arena().at<float>(elements * 6, i);
    rms_norm_cuda(bench.op(),
                  {x, nullptr, weight, 1e-5F, tokens, kHidden, Dtype::BF16, x + elements});
  });
}

void bench_rope_kv(Bench& bench, std::uint32_t tokens) {
  std::vector<std::uint32_t> slots(kMaxTokens);
  for (std::uint32_t i = 0; i < kMaxTokens; ++i) slots[i] = (i / 16 * 389 % 1024) * 16 + i % 16;
  static const std::uint32_t* const slots_cuda = device_copy(slots);
  const std::size_t qkv = std::size_t{tokens} * (kHeads + 2 * kKvHeads) * kHeadDim * 2;
  const std::size_t cache = std::size_t{kMaxTokens} * kKvHeads * kHeadDim * 2;
  static void* const k = device_copy(std::vector<char>(cache));
  static void* const v = device_copy(std::vector<char>(cache));
  const std::size_t angles = std::size_t{tokens} * kHeadDim * 4;
  bench.time("rope_kv", tokens, static_cast<double>(2 * qkv + angles), [&](std::size_t i) {
    char* from = bench.arena().at<char>(qkv + angles, i);
    rope_kv_cuda(bench.op(), {k, v, Dtype::BF16, kMaxTokens / 16, 16, kKvHeads, kHeadDim},
                 {from, reinterpret_cast<float*>(from + qkv), slots_cuda, tokens, kHeads});
  });
}

void bench_silu_mul(Bench& bench, std::uint32_t tokens) {
  const std::size_t elements = std::size_t{tokens} * kIntermediate;
  bench.time("silu_mul", tokens, static_cast<double>(elements * 6), [&](std::size_t i) {
    auto* from = bench.arena().at<std::uint16_t>(elements * 6, i);
    silu_mul_cuda(bench.op(), {from, tokens, kIntermediate, Dtype::BF16, from + 2 * elements});
  });
}

// Rows of one kind. The bytes are those of one reading of the logits.
void bench_sample(Bench& bench, const char* name, const SampleParams& params, std::uint32_t rows) {
  static std::byte* const workspace =
      device_copy(std::vector<std::byte>(sample_cuda_workspace_bytes(kMaxRows, kVocab)));
  static Sampled* const sampled = device_copy(std::vector<Sampled>(kMaxRows));
  static std::uint32_t* const ids = device_copy(std::vector<std::uint32_t>(kMaxRows));
  std::vector<std::uint32_t> seats(kMaxRows);
  for (std::uint32_t i = 0; i < kMaxRows; ++i) seats[i] = i;
  static const std::uint32_t* const seats_cuda = device_copy(seats);
  SampleParams* const all = device_copy(std::vector<SampleParams>(rows, params));
  const std::size_t bytes = std::size_t{rows} * kVocab * 4;
  bench.time(name, rows, static_cast<double>(bytes), [&](std::size_t i) {
    sample_cuda(bench.op(), {.logits = bench.arena().at<float>(bytes, i),
                             .params = all,
                             .seats = seats_cuda,
                             .num_rows = rows,
                             .vocab_size = kVocab,
                             .any_random = params.temperature > 0,
                             .any_filter = params.top_k != 0 || params.top_p < 1,
                             .workspace = workspace,
                             .sampled = sampled,
                             .sampled_ids = ids});
  });
  check(cudaFree(all), "cudaFree");
}

void bench_random_fill(Bench& bench) {
  static const void* const table = device_copy(std::vector<std::uint16_t>(4096));
  const std::size_t bytes = std::size_t{kIntermediate} * 2 * kHidden * 2;
  bench.time("random_fill", 2 * kIntermediate, static_cast<double>(bytes), [&](std::size_t i) {
    random_fill_cuda(bench.op(), {table, i, 2 * kIntermediate, kHidden, Dtype::BF16,
                                  bench.arena().at<void>(bytes, i)});
  });
}

void run(double peak) {
  Bench bench(peak);
  for (const std::uint32_t rows : {1U, 8U, 64U, 256U}) {
    bench_sample(bench, "sample greedy", {}, rows);
    bench_sample(bench, "sample temperature", {.temperature = 1, .seed = 1}, rows);
    bench_sample(bench, "sample top-k 50, top-p 0.9",
                 {.temperature = 0.8F, .top_k = 50, .top_p = 0.9F, .seed = 1}, rows);
    bench_sample(bench, "sample top-p 0.9", {.temperature = 0.8F, .top_p = 0.9F, .seed = 1}, rows);
  }
  for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
    bench_embed(bench, tokens);
    bench_rms_norm(bench, tokens);
    bench_rope_kv(bench, tokens);
    bench_silu_mul(bench, tokens);
  }
  bench_random_fill(bench);
}

}  // namespace
}  // namespace inferno::ops::cuda

int main(int count, char** arguments) {
  try {
    inferno::ops::cuda::run((count > 1 ? std::atof(arguments[1]) : 4.54) * 1e12);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
