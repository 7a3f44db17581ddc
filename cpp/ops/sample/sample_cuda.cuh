// What the sampler's kernels share: a row's record in the workspace, its logits as a block reads
// them, weights and ranks bit by bit as in sample.cc, sums over a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/cuda/cuda_device.cuh"
#include "ops/sample/sample_cuda.h"

namespace inferno::ops::cuda {

constexpr int kOctaves = 40;
constexpr int kBucketsPerOctave = 64;
constexpr std::uint32_t kNumBuckets = (kOctaves + 1) * kBucketsPerOctave;
constexpr std::uint32_t kMaxParts = 512;  // blocks that share a row

// log2 of a token's weight over the best one's, as in sample.cc: by operations that the compiler
// does not contract.
struct Log2Weight {
  float max;
  float scale;  // of logits, to powers of two
  __device__ float operator()(float logit) const { return __fmul_rn(__fsub_rn(logit, max), scale); }
};

// A row on its way from kernel to kernel.
struct RowRecord {
  std::uint32_t finished;  // blocks that have published their part; goes back to 0 by itself
  std::uint32_t is_drawn;  // 0: the scan has answered
  Log2Weight log2_weight;
  std::uint64_t last_key;  // of what top-k and top-p keep
  std::uint64_t parts[kMaxParts];
  // The tokens by distance from the best one. Zero outside of the two filter kernels.
  std::uint32_t counts[kNumBuckets];
  std::uint64_t masses[kNumBuckets];
};

__device__ inline RowRecord& record_of(const SampleCudaArgs& args, std::uint32_t row) {
  return static_cast<RowRecord*>(args.workspace)[row];
}

__device__ inline bool filters_by_rank(const SampleParams& params) {
  return params.top_k != 0 || params.top_p < 1;
}

__device__ inline float least_weight(const SampleParams& params) {
  return ldexpf(params.min_p, kOctaves);
}

// --- As in sample.cc.

constexpr float kLowestLog2 = -static_cast<float>(kOctaves + 1);  // from here down, 0

__device__ inline float weight_of(float y) {
  constexpr float kSeries[] = {1.5252734e-5F, 1.5403530e-4F, 1.3333558e-3F, 9.6181291e-3F,
                               5.5504109e-2F, 2.4022651e-1F, 6.9314718e-1F, 1.0F};
  const float clamped = y > kLowestLog2 ? y : kLowestLog2;
  const int whole = __float2int_rz(clamped);
  const float f = __fsub_rn(clamped, static_cast<float>(whole));
  float p = 1.3215487e-6F;
#pragma unroll
  for (const float coefficient : kSeries) p = __fadd_rn(__fmul_rn(p, f), coefficient);
  return __fmul_rn(p, __int_as_float((whole + kOctaves + 127) << 23));
}

__device__ inline std::uint64_t whole_weight(float y) { return __float2ull_rz(weight_of(y)); }

__device__ inline std::uint32_t bucket_of(float y) {
  return static_cast<std::uint32_t>(
      __float2int_rz(__fmul_rn(-y, static_cast<float>(kBucketsPerOctave))));
}

__device__ inline std::uint64_t rank_key(float logit, std::uint32_t id) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0F));
  const std::uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<std::uint64_t>(~ascending) << 32 | id;
}

__device__ inline float logit_of(std::uint64_t key) {
  const std::uint32_t ascending = ~static_cast<std::uint32_t>(key >> 32);
  return __uint_as_float((ascending >> 31) != 0 ? ascending & 0x7FFFFFFFU : ~ascending);
}

// --- Logits. A row is read in words of 16 bytes; word w holds ids 4 w - lead to 4 w - lead + 3.

struct Words {
  std::uint32_t begin;
  std::uint32_t end;
};

struct RowLogits {
  float* first;
  std::uint32_t vocab_size;
  std::uint32_t lead;  // floats from the boundary of 16 bytes before the row to the row

  __device__ RowLogits(float* rows, std::uint32_t row, std::uint32_t vocab_size)
      : first(rows + std::size_t{row} * vocab_size),
        vocab_size(vocab_size),
        lead((row % 4) * (vocab_size % 4) % 4) {}

  __device__ Words words() const { return {0, (lead + vocab_size + 3) / 4}; }

  // The share of block `part` of `num_parts`.
  __device__ Words part(std::uint32_t part, std::uint32_t num_parts) const {
    const std::uint32_t all = words().end;
    const std::uint32_t size = (all + num_parts - 1) / num_parts;
    return {min(all, part * size), min(all, (part + 1) * size)};
  }

  // -infinity for what is not of the row.
  __device__ float4 load(std::uint32_t word) const {
    const std::int64_t id = std::int64_t{word} * 4 - lead;
    if (id >= 0 && id + 4 <= vocab_size) return *reinterpret_cast<const float4*>(first + id);
    const auto load_one = [&](std::int64_t at) {
      return at >= 0 && at < vocab_size ? first[at] : -INFINITY;
    };
    return {load_one(id), load_one(id + 1), load_one(id + 2), load_one(id + 3)};
  }

  // Calls fn(logit, id) for the logits of a word, in order; and with -infinity and no id of the row
  // where the word reaches beyond it.
  template <typename Fn>
  __device__ void visit(std::uint32_t word, const float4& logits, Fn fn) const {
    const std::uint32_t id = word * 4 - lead;
    fn(logits.x, id);
    fn(logits.y, id + 1);
    fn(logits.z, id + 2);
    fn(logits.w, id + 3);
  }
};

// What a row is drawn from: the model's logits, or what its rules made of them.
__device__ inline RowLogits drawn_logits(const SampleCudaArgs& args, std::uint32_t row) {
  const bool is_changed = args.rules != nullptr && args.rules[row].change_logits();
  return {is_changed ? args.processed : args.logits, row, args.vocab_size};
}

// Calls fn(logit, id) for the words of this thread in ascending order, several loads ahead. See
// RowLogits::visit.
template <std::uint32_t kThreads, typename Fn>
__device__ void for_each_logit(const RowLogits& row, Words words, Fn fn) {
  constexpr std::uint32_t kAhead = 4;
  for (std::uint32_t at = words.begin + threadIdx.x; at < words.end; at += kAhead * kThreads) {
    float4 loaded[kAhead];
#pragma unroll
    for (std::uint32_t i = 0; i < kAhead; ++i) {
      const std::uint32_t word = at + i * kThreads;
      if (word < words.end) loaded[i] = row.load(word);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < kAhead; ++i) {
      const std::uint32_t word = at + i * kThreads;
      if (word < words.end) row.visit(word, loaded[i], fn);
    }
  }
}

// --- Sums over a block.

// op is associative and commutative. All threads get the result.
template <std::uint32_t kThreads, typename Op>
__device__ std::uint64_t block_reduce(std::uint64_t value, Op op) {
  constexpr std::uint32_t kWarps = kThreads / 32;
  __shared__ std::uint64_t warps[kWarps];
  for (int lane = 16; lane > 0; lane /= 2) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFFU, value, lane));
  }
  __syncthreads();  // an earlier call's reads
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[threadIdx.x % kWarps];
  for (int lane = kWarps / 2; lane > 0; lane /= 2) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFFU, value, lane));
  }
  return value;
}

template <std::uint32_t kThreads>
__device__ std::uint64_t block_sum(std::uint64_t value) {
  return block_reduce<kThreads>(value, [](std::uint64_t a, std::uint64_t b) { return a + b; });
}

template <std::uint32_t kThreads>
__device__ std::uint64_t block_min(std::uint64_t value) {
  return block_reduce<kThreads>(value, [](std::uint64_t a, std::uint64_t b) { return min(a, b); });
}

struct Scan {
  std::uint64_t before;  // the sum of the threads before this one
  std::uint64_t total;
};

template <std::uint32_t kThreads>
__device__ Scan block_scan(std::uint64_t value) {
  constexpr std::uint32_t kWarps = kThreads / 32;
  __shared__ std::uint64_t warps[kWarps];
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t warp = threadIdx.x / 32;
  std::uint64_t sum = value;
  for (std::uint32_t step = 1; step < 32; step *= 2) {
    const std::uint64_t other = __shfl_up_sync(0xFFFFFFFFU, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // an earlier call's reads
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  std::uint64_t before = lane < warp ? warps[lane] : 0;
  std::uint64_t total = lane < kWarps ? warps[lane] : 0;
  for (int step = 16; step > 0; step /= 2) {
    before += __shfl_xor_sync(0xFFFFFFFFU, before, step);
    total += __shfl_xor_sync(0xFFFFFFFFU, total, step);
  }
  return {before + sum - value, total};
}

struct Found {
  std::uint32_t index;
  std::uint64_t before;  // the sum of what comes before it
};

// The first index below `count` at which the running sum of amount(index) reaches `wanted`, which
// is above 0; `count` where the whole sum does not. All threads get it.
template <std::uint32_t kThreads, typename Amount>
__device__ Found find_reaching(std::uint32_t count, std::uint64_t wanted, Amount amount) {
  __shared__ Found found;
  std::uint64_t earlier = 0;
  for (std::uint32_t begin = 0; begin < count && earlier < wanted; begin += kThreads) {
    const std::uint32_t index = begin + threadIdx.x;
    const std::uint64_t value = index < count ? amount(index) : 0;
    const Scan scan = block_scan<kThreads>(value);
    const std::uint64_t before = earlier + scan.before;
    if (before < wanted && wanted <= before + value) found = {index, before};
    earlier += scan.total;
  }
  if (earlier < wanted) return {count, earlier};
  __syncthreads();
  return found;
}

// Says that this block's part of a row is done, what it has written included. True in the block
// that comes last, which sees all parts; `finished` is 0 again then.
__device__ inline bool finish_part(std::uint32_t& finished) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// The kernels of sample_filter_cuda.cu: for rows that filter by rank, last_key of their records.
void launch_rank_filter(const CudaOp& op, const SampleCudaArgs& args);

// Blocks for each row: enough to fill the device, with a share of min_share to max_share logits.
struct RowParts {
  std::uint32_t num_rows;
  std::uint32_t vocab_size;

  std::uint32_t count(std::uint32_t max_blocks, std::uint32_t min_share,
                      std::uint32_t max_share) const {
    const std::uint32_t fewest = (vocab_size + max_share - 1) / max_share;
    const std::uint32_t most = (vocab_size + min_share - 1) / min_share;
    return std::clamp(std::clamp(max_blocks / num_rows, fewest, most), 1U, kMaxParts);
  }
};

}  // namespace inferno::ops::cuda
