// Times the ops around products and attention, the sampler and the random fill on the shapes of
// Llama-3.1-8B: launches chained in a graph, as a step chains them, on buffers in rotation so that
// the L2 does not answer for the memory.
//   elementwise_bench
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string_view>
#include <vector>

#include "lab/support/ceilings.h"
#include "lab/support/gpu_bench.h"
#include "ops/add_norm/add_norm_cuda.h"
#include "ops/embed/embed_cuda.h"
#include "ops/glu/glu_cuda.h"
#include "ops/head_norm/head_norm_cuda.h"
#include "ops/random_fill/random_fill_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"
#include "ops/rope/rope_kv_cuda.h"
#include "ops/sample/sample_cuda.h"
#include "ops/softcap/softcap_cuda.h"

namespace inferno::lab {
namespace {

using namespace ops::cuda;
using ops::Dtype;
using ops::Sampled;
using ops::SampleParams;

constexpr std::uint32_t kHidden = 4096;
constexpr std::uint32_t kHeads = 32;
constexpr std::uint32_t kKvHeads = 8;
constexpr std::uint32_t kHeadDim = 128;
constexpr std::uint32_t kIntermediate = 14336;
constexpr std::uint32_t kVocab = 128256;
constexpr std::uint32_t kMaxTokens = 16384;
constexpr std::uint32_t kMaxRows = 256;
constexpr std::uint32_t kBlockSize = 16;
constexpr std::size_t kArenaBytes = std::size_t{6} << 30;
constexpr std::size_t kRotatedBytes = 400'000'000;  // several times the L2

class Bench {
 public:
  // Inputs and outputs come from one arena of normal logits, which are at the same time valid
  // elements of 16 bits.
  Bench() : read_(print_read_ceiling(gpu_)), copy_(print_copy_ceiling(gpu_)) {
    fill_normal(gpu_, arena_);
  }

  const CudaOp& op() const { return gpu_.op(); }

  // `bytes` of the arena for launch `index` of those that rotate; the rotation begins anew at its
  // end.
  template <typename T>
  T* at(std::size_t bytes, std::size_t index) const {
    const std::size_t stride = (bytes + 255) / 256 * 256;
    const std::size_t sets =
        std::clamp<std::size_t>(kRotatedBytes / stride + 1, 2, kArenaBytes / stride);
    return reinterpret_cast<T*>(reinterpret_cast<char*>(arena_.data()) + index % sets * stride);
  }

  // launch_one(i) is the i-th of a chain; `bytes` are what it moves.
  void time(const char* name, std::size_t size, double bytes,
            const std::function<void(std::size_t)>& launch_one) const {
    const std::size_t chain = bytes < 1e8 ? 200 : 20;
    const double us = gpu_.median_us([&] {
      for (std::size_t i = 0; i < chain; ++i) launch_one(i);
    }) / static_cast<double>(chain);
    const double rate = bytes / us * 1e6;
    std::printf("%-28s %6zu %9.2f us %8.0f GB/s %5.1f %% of read %5.1f %% of copy\n", name, size,
                us, rate * 1e-9, rate / read_ * 100, rate / copy_ * 100);
    std::fflush(stdout);
  }

 private:
  Gpu gpu_;
  double read_, copy_;  // bytes/s at the most
  DeviceArray<float> arena_{kArenaBytes / sizeof(float)};
};

void bench_embed(const Bench& bench) {
  std::vector<std::uint32_t> ids(kMaxTokens);
  for (std::uint32_t i = 0; i < kMaxTokens; ++i) ids[i] = i * 7919 % kVocab;
  const DeviceArray<std::uint32_t> token_ids(ids);
  const DeviceArray<std::uint32_t> seats(std::vector(kMaxTokens, kNoSeat));
  const DeviceArray<float> floats(std::vector(kHidden, 0.5F));
  const DeviceArray<Bf16> table(std::size_t{kVocab} * kHidden);
  for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
    const std::size_t elements = std::size_t{tokens} * kHidden;
    const std::size_t bytes = elements * 6 + std::size_t{tokens} * kHeadDim * 4;
    bench.time("embed", tokens, static_cast<double>(bytes + elements * 2), [&](std::size_t i) {
      char* out = bench.at<char>(bytes, i);
      embed_cuda(bench.op(), {.table = {table.data(), kVocab, kHidden, Dtype::BF16},
                              .token_ids = token_ids.data(),
                              .feed_seats = seats.data(),
                              .sampled_ids = token_ids.data(),
                              .num_tokens = tokens,
                              .positions = token_ids.data(),
                              .ropes = {{floats.data(), kHeadDim / 2, 1,
                                         reinterpret_cast<float*>(out + elements * 6)}},
                              .num_ropes = 1,
                              .norm = {true, floats.data(), 1e-5F},
                              .x = reinterpret_cast<float*>(out),
                              .h = out + elements * 4});
    });
  }
}

void bench_rms_norm(const Bench& bench) {
  const DeviceArray<float> weight(std::vector(kHidden, 0.5F));
  for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
    const std::size_t elements = std::size_t{tokens} * kHidden;
    bench.time("rms_norm", tokens, static_cast<double>(elements * 6), [&](std::size_t i) {
      auto* x = bench.at<float>(elements * 6, i);
      rms_norm_cuda(bench.op(),
                    {x, nullptr, weight.data(), 1e-5F, tokens, kHidden, Dtype::BF16, x + elements});
    });
  }
}

// With both norms, as Gemma has them.
void bench_add_norm(const Bench& bench) {
  const DeviceArray<float> weight(std::vector(kHidden, 0.5F));
  const RowNorm norm{true, weight.data(), 1e-5F};
  for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
    const std::size_t elements = std::size_t{tokens} * kHidden;
    bench.time("add_norm", tokens, static_cast<double>(elements * 14), [&](std::size_t i) {
      auto* x = bench.at<float>(elements * 10, i);
      add_norm_cuda(bench.op(), {.x = x,
                                 .y = x + elements,
                                 .post = norm,
                                 .next = norm,
                                 .h = x + 2 * elements,
                                 .num_tokens = tokens,
                                 .hidden_size = kHidden});
    });
  }
}

// The whole q of qkv, as OLMo normalises it.
void bench_head_norm(const Bench& bench) {
  const DeviceArray<float> weight(std::vector(kHidden, 0.5F));
  constexpr std::size_t kStride = (kHeads + 2 * kKvHeads) * kHeadDim;
  for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
    const auto bytes = static_cast<double>(std::size_t{tokens} * kHidden * 4);
    bench.time("head_norm", tokens, bytes, [&](std::size_t i) {
      head_norm_cuda(bench.op(), {.x = bench.at<void>(tokens * kStride * 2, i),
                                  .row_stride = kStride,
                                  .weight = weight.data(),
                                  .eps = 1e-5F,
                                  .num_tokens = tokens,
                                  .width = kHidden});
    });
  }
}

struct RopeKind {
  const char* name;
  RopeKvArgs args;
};

void bench_rope_kv(const Bench& bench) {
  constexpr std::uint32_t kBlocks = kMaxTokens / kBlockSize;
  std::vector<std::uint32_t> slots(kMaxTokens);
  for (std::uint32_t i = 0; i < kMaxTokens; ++i) {
    slots[i] = i / kBlockSize * 389 % kBlocks * kBlockSize + i % kBlockSize;  // blocks far apart
  }
  const DeviceArray<std::uint32_t> slot_mapping(slots);
  const DeviceArray<Bf16> k(std::size_t{kMaxTokens} * kKvHeads * kHeadDim);
  const DeviceArray<Bf16> v(k.size());
  const KvLayerCuda layer{k.data(), v.data(), Dtype::BF16, kBlocks, kBlockSize, kKvHeads, kHeadDim};
  const DeviceArray<float> weight(std::vector(kHeadDim, 0.5F));
  const RowNorm norm{true, weight.data(), 1e-6F};
  const RopeKvArgs plain{
      .slot_mapping = slot_mapping.data(), .num_heads = kHeads, .rotary_dim = kHeadDim};
  RopeKind kinds[] = {{"rope_kv", plain}, {"rope_kv, head norms", plain}, {"kv, no rope", plain}};
  kinds[1].args.q_norm = kinds[1].args.k_norm = norm;
  for (auto& [name, args] : kinds) {
    const bool turns = std::string_view(name) != "kv, no rope";
    for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
      const std::size_t qkv = std::size_t{tokens} * (kHeads + 2 * kKvHeads) * kHeadDim * 2;
      const std::size_t angles = std::size_t{tokens} * kHeadDim * 4;
      const std::size_t kv = std::size_t{tokens} * 2 * kKvHeads * kHeadDim * 2;
      const auto bytes = static_cast<double>(turns ? 2 * qkv + angles : 2 * kv);
      args.num_tokens = tokens;
      bench.time(name, tokens, bytes, [&](std::size_t i) {
        args.qkv = bench.at<char>(qkv + angles, i);
        args.cos_sin = turns ? bench.at<float>(qkv + angles, i) + qkv / 4 : nullptr;
        rope_kv_cuda(bench.op(), layer, args);
      });
    }
  }
}

struct Glu {
  const char* name;
  ops::Activation activation;
};

void bench_glu(const Bench& bench) {
  for (const auto& [name, activation] :
       {Glu{"glu silu", {}},
        {"glu gelu_tanh", {ops::ActivationKind::GeluTanh}},
        {"glu clamped_silu", {ops::ActivationKind::ClampedSilu, 1.702F, 7.0F}}}) {
    for (const std::uint32_t tokens : {1U, 256U, kMaxTokens}) {
      const std::size_t elements = std::size_t{tokens} * kIntermediate;
      bench.time(name, tokens, static_cast<double>(elements * 6), [&](std::size_t i) {
        auto* from = bench.at<Bf16>(elements * 6, i);
        glu_cuda(bench.op(), {.gate_up = from,
                              .num_tokens = tokens,
                              .intermediate_size = kIntermediate,
                              .activation = activation,
                              .out = from + 2 * elements});
      });
    }
  }
}

void bench_softcap(const Bench& bench) {
  for (const std::uint32_t rows : {1U, 256U}) {
    const std::size_t count = std::size_t{rows} * kVocab;
    bench.time("softcap", rows, static_cast<double>(count * 8), [&](std::size_t i) {
      softcap_cuda(bench.op(),
                   {.logits = bench.at<float>(count * 4, i), .count = count, .cap = 30});
    });
  }
}

struct Sampling {
  const char* name;
  SampleParams params;
};

// Rows of one kind. The bytes are those of one reading of the logits.
void bench_sample(const Bench& bench) {
  const DeviceArray<std::byte> workspace(sample_cuda_workspace_bytes(kMaxRows, kVocab));
  const DeviceArray<Sampled> sampled(kMaxRows);
  const DeviceArray<std::uint32_t> ids(kMaxRows);
  std::vector<std::uint32_t> seats(kMaxRows);
  for (std::uint32_t i = 0; i < kMaxRows; ++i) seats[i] = i;
  const DeviceArray<std::uint32_t> row_seats(seats);
  for (const std::uint32_t rows : {1U, 8U, 64U, 256U}) {
    for (const auto& [name, params] :
         {Sampling{"sample greedy", {}},
          {"sample temperature", {.temperature = 1, .seed = 1}},
          {"sample top-k 50, top-p 0.9",
           {.temperature = 0.8F, .top_k = 50, .top_p = 0.9F, .seed = 1}},
          {"sample top-p 0.9", {.temperature = 0.8F, .top_p = 0.9F, .seed = 1}}}) {
      const DeviceArray<SampleParams> row_params(std::vector(rows, params));
      const std::size_t bytes = std::size_t{rows} * kVocab * 4;
      const bool any_random = params.temperature > 0;
      const bool any_filter = params.top_k != 0 || params.top_p < 1;
      bench.time(name, rows, static_cast<double>(bytes), [&](std::size_t i) {
        sample_cuda(bench.op(), {.logits = bench.at<float>(bytes, i),
                                 .params = row_params.data(),
                                 .seats = row_seats.data(),
                                 .num_rows = rows,
                                 .vocab_size = kVocab,
                                 .any_random = any_random,
                                 .any_filter = any_filter,
                                 .workspace = workspace.data(),
                                 .sampled = sampled.data(),
                                 .sampled_ids = ids.data()});
      });
    }
  }
}

void bench_random_fill(const Bench& bench) {
  const DeviceArray<Bf16> table(4096);
  const std::size_t bytes = std::size_t{kIntermediate} * 2 * kHidden * 2;
  bench.time("random_fill", 2 * kIntermediate, static_cast<double>(bytes), [&](std::size_t i) {
    random_fill_cuda(bench.op(), {table.data(), i, 2 * kIntermediate, kHidden, Dtype::BF16,
                                  bench.at<void>(bytes, i)});
  });
}

void run() {
  const Bench bench;
  bench_sample(bench);
  bench_embed(bench);
  bench_rms_norm(bench);
  bench_add_norm(bench);
  bench_rope_kv(bench);
  bench_head_norm(bench);
  bench_glu(bench);
  bench_softcap(bench);
  bench_random_fill(bench);  // last: it leaves other values in the arena
}

}  // namespace
}  // namespace inferno::lab

int main() { return inferno::lab::run_bench(inferno::lab::run); }
