// A row is shared by as many blocks as its vocabulary needs, whatever the batch. Each keeps its
// share in registers and takes its best ids from it one by one; the last block to finish takes the
// row's from theirs. Then, with the best logit known, the blocks add up the weights.
#include <cmath>

#include "ops/sample/sample_cuda.cuh"
#include "ops/score/score_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kWordsPerThread = 8;
constexpr std::uint32_t kWordsPerBlock = kThreads * kWordsPerThread;
constexpr std::uint64_t kBadKey = 0;  // the row has a NaN or +infinity
constexpr std::uint64_t kNoKey = kKeepAll;

// A row between the two kernels. The keys of its parts follow it.
struct ScoreRecord {
  std::uint64_t mass;      // 0 outside of the second kernel
  std::uint32_t finished;  // blocks that have published their part; goes back to 0 by itself
  std::uint32_t is_valid;
};

std::uint32_t num_parts(std::uint32_t vocab_size) {
  const std::uint32_t words = (vocab_size + 3 + 3) / 4;  // with the longest lead
  return (words + kWordsPerBlock - 1) / kWordsPerBlock;
}

__host__ __device__ std::size_t record_bytes(std::uint32_t parts) {
  return sizeof(ScoreRecord) + std::size_t{parts} * kMaxTop * sizeof(std::uint64_t);
}

__device__ ScoreRecord& score_record(const ScoreCudaArgs& args, std::uint32_t row) {
  auto* bytes = static_cast<unsigned char*>(args.workspace);
  return *reinterpret_cast<ScoreRecord*>(bytes + row * record_bytes(gridDim.x));
}

__device__ std::uint64_t* part_keys(ScoreRecord& record, std::uint32_t part) {
  return reinterpret_cast<std::uint64_t*>(&record + 1) + std::size_t{part} * kMaxTop;
}

// The logits of a row and which of its ids have a probability.
struct ScoredRow {
  RowLogits logits;
  Kept kept;

  __device__ static bool is_of_drawn(const ScoreCudaArgs& args, std::uint32_t row) {
    return args.rows[row].processed && args.kept != nullptr;
  }
  __device__ static RowLogits logits_of(const ScoreCudaArgs& args, std::uint32_t row) {
    const bool is_changed =
        args.rows[row].processed && args.rules != nullptr && args.rules[row].change_logits();
    return {is_changed ? args.processed : args.logits, row, args.vocab_size};
  }

  __device__ ScoredRow(const ScoreCudaArgs& args, std::uint32_t row)
      : logits(logits_of(args, row)), kept{} {
    if (is_of_drawn(args, row)) kept = args.kept[row];
  }

  __device__ float weight(float logit) const {
    return weight_of(Log2Weight{kept.max, kept.scale}(logit));
  }
  __device__ std::uint64_t key_of(float logit, std::uint32_t id) const {
    if (!(logit < INFINITY)) return kBadKey;
    if (!(logit > -INFINITY)) return kNoKey;
    const std::uint64_t key = rank_key(logit, id);
    const bool is_kept = key <= kept.last_key && (kept.least <= 0 || weight(logit) >= kept.least);
    return is_kept ? key : kNoKey;
  }
};

__device__ bool is_scored(const ScoreCudaArgs& args, std::uint32_t row) {
  const RowLogprobs& wanted = args.rows[row];
  const bool is_drawn = args.targets[row].status == SampleStatus::kOk;
  return wanted.wanted && (is_drawn || !wanted.processed);
}

// The `count` smallest keys of a block's threads in order, each to put(index, key) in one thread.
// next_after(key): a thread's smallest key beyond this one, or kNoKey. No key twice.
template <typename Next, typename Put>
__device__ void take_smallest(std::uint32_t count, Next next_after, Put put) {
  std::uint64_t mine = next_after(0, true);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint64_t best = block_min<kThreads>(mine);
    if (threadIdx.x == 0) put(i, best);
    if (best == kNoKey || best == kBadKey) {
      for (++i; threadIdx.x == 0 && i < count; ++i) put(i, best);
      return;
    }
    if (mine == best) mine = next_after(best, false);
  }
}

__device__ void finish_top(const ScoreCudaArgs& args, std::uint32_t row, ScoreRecord& record) {
  const std::uint32_t count = max(args.rows[row].num_top, 1U);
  const ScoredRow scored(args, row);
  const std::uint32_t num_keys = gridDim.x * count;
  RowScore& score = args.scores[row];
  const auto next_after = [&](std::uint64_t key, bool is_first) {
    std::uint64_t next = kNoKey;
    for (std::uint32_t i = threadIdx.x; i < num_keys; i += kThreads) {
      const std::uint64_t found = __ldcg(
          reinterpret_cast<const unsigned long long*>(part_keys(record, i / count) + i % count));
      if (is_first || found > key) next = min(next, found);
    }
    return next;
  };
  if (threadIdx.x == 0) {
    score = {.temperature = scored.kept.temperature};
    record.is_valid = 0;
  }
  take_smallest(count, next_after, [&](std::uint32_t i, std::uint64_t key) {
    if (key == kBadKey || key == kNoKey) return;
    if (i == 0) {
      record.is_valid = 1;
      score.max = logit_of(key);
    }
    if (args.rows[row].num_top == 0) return;
    // The logit itself: a key has +0 for -0.
    const auto id = static_cast<std::uint32_t>(key);
    args.top[std::size_t{row} * kMaxTop + i] = {id, scored.logits.first[id]};
    score.num_top = i + 1;
  });
}

__global__ void __launch_bounds__(kThreads) top_kernel(ScoreCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  if (!is_scored(args, row)) return;
  const ScoredRow scored(args, row);
  const Words words = scored.logits.part(blockIdx.x, gridDim.x);
  float4 share[kWordsPerThread];
#pragma unroll
  for (std::uint32_t i = 0; i < kWordsPerThread; ++i) {
    const std::uint32_t word = words.begin + threadIdx.x + i * kThreads;
    constexpr float kNone = -INFINITY;
    share[i] = word < words.end ? scored.logits.load(word) : float4{kNone, kNone, kNone, kNone};
  }
  const auto next_after = [&](std::uint64_t key, bool is_first) {
    std::uint64_t next = kNoKey;
#pragma unroll
    for (std::uint32_t i = 0; i < kWordsPerThread; ++i) {
      scored.logits.visit(words.begin + threadIdx.x + i * kThreads, share[i],
                          [&](float logit, std::uint32_t id) {
                            const std::uint64_t found = scored.key_of(logit, id);
                            if (is_first || found > key) next = min(next, found);
                          });
    }
    return next;
  };
  ScoreRecord& record = score_record(args, row);
  const std::uint32_t count = max(args.rows[row].num_top, 1U);
  // A part of fewer ids fills up with kNoKey.
  take_smallest(count, next_after, [&](std::uint32_t i, std::uint64_t key) {
    part_keys(record, blockIdx.x)[i] = key;
  });
  if (finish_part(record.finished)) finish_top(args, row, record);
}

__global__ void __launch_bounds__(kThreads) mass_kernel(ScoreCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  ScoreRecord& record = score_record(args, row);
  if (!is_scored(args, row) || record.is_valid == 0) return;
  ScoredRow scored(args, row);
  scored.kept.max = args.scores[row].max;
  const bool keeps_all = scored.kept.last_key == kKeepAll && scored.kept.least <= 0;
  std::uint64_t sum = 0;
  for_each_logit<kThreads>(
      scored.logits, scored.logits.part(blockIdx.x, gridDim.x), [&](float logit, std::uint32_t id) {
        const float weight = scored.weight(logit);
        const bool is_kept = keeps_all || (weight >= scored.kept.least &&
                                           rank_key(logit, id) <= scored.kept.last_key);
        if (is_kept) sum += __float2ull_rz(weight);
      });
  sum = block_sum<kThreads>(sum);
  auto* mass = reinterpret_cast<unsigned long long*>(&record.mass);
  if (threadIdx.x == 0) atomicAdd(mass, sum);
  if (!finish_part(record.finished) || threadIdx.x != 0) return;
  args.scores[row].mass = __ldcg(mass);
  const Sampled target = args.targets[row];
  if (target.status == SampleStatus::kOk && target.token_id < args.vocab_size) {
    args.scores[row].logit = scored.logits.first[target.token_id];
  }
  record.mass = 0;
}

}  // namespace

void score_cuda(const CudaOp& op, const ScoreCudaArgs& args) {
  if (args.num_rows == 0) return;
  const LaunchShape shape{dim3(num_parts(args.vocab_size), args.num_rows), kThreads};
  launch(op, top_kernel, shape, args);
  launch(op, mass_kernel, shape, args);
}

std::size_t score_cuda_workspace_bytes(std::uint32_t max_rows, std::uint32_t vocab_size) {
  return max_rows * record_bytes(num_parts(vocab_size));
}

}  // namespace inferno::ops::cuda
