// A row is shared by as many blocks as its vocabulary needs, whatever the batch. Each keeps its
// share in registers and ranks its best ids; the last block to finish takes the row's from theirs.
// Then, with the best logit known, the blocks add up the weights.
#include <cmath>

#include "ops/sample/sample_cuda.cuh"
#include "ops/score/score_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kWordsPerThread = 8;
constexpr std::uint32_t kWordsPerBlock = kThreads * kWordsPerThread;
constexpr std::uint64_t kBadKey = 0;  // before every rank: the row has a NaN or +infinity
constexpr std::uint64_t kNoKey = kKeepAll;
constexpr std::uint32_t kNoRank = kNoKey >> 32;

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

// Ids whose rank a part finds: the first tells the best logit in any case.
__device__ std::uint32_t num_ranked(const RowLogprobs& wanted) { return max(wanted.num_top, 1U); }

// The logits of a row and which of its ids have a probability.
struct ScoredRow {
  RowLogits logits;
  Kept kept;

  __device__ static RowLogits logits_of(const ScoreCudaArgs& args, std::uint32_t row) {
    const bool is_changed =
        args.rows[row].processed && args.rules != nullptr && args.rules[row].change_logits();
    return {is_changed ? args.processed : args.logits, row, args.vocab_size};
  }

  __device__ ScoredRow(const ScoreCudaArgs& args, std::uint32_t row)
      : logits(logits_of(args, row)), kept{} {
    if (args.rows[row].processed && args.kept != nullptr) kept = args.kept[row];
  }

  __device__ float weight(float logit) const {
    return weight_of(Log2Weight{kept.max, kept.scale}(logit));
  }
  // With `least` up to 1, what weighs less counts nothing in any case.
  __device__ bool counts_all() const { return kept.last_key == kKeepAll && kept.least <= 1; }
  __device__ bool lists_all() const { return kept.last_key == kKeepAll && kept.least <= 0; }
  __device__ bool keeps(float logit, std::uint32_t id, float weight) const {
    return weight >= kept.least && rank_key(logit, id) <= kept.last_key;
  }
};

__device__ bool is_scored(const ScoreCudaArgs& args, std::uint32_t row) {
  const RowLogprobs& wanted = args.rows[row];
  const bool is_drawn = args.targets[row].status == SampleStatus::kOk;
  return wanted.wanted && (is_drawn || !wanted.processed);
}

// A thread's part of a block's share.
struct Share {
  float4 words[kWordsPerThread];
  std::uint32_t first_id;  // of the first word; the others follow kThreads words apart
  bool is_bad;             // a NaN or +infinity was met

  __device__ static constexpr std::uint32_t id_at(std::uint32_t word, std::uint32_t i) {
    return word * kThreads * 4 + i;
  }
  __device__ static float& element(float4& word, std::uint32_t i) {
    return i == 0 ? word.x : i == 1 ? word.y : i == 2 ? word.z : word.w;
  }

  // What has no probability becomes -infinity, as what lies beyond the row is.
  __device__ Share(const ScoredRow& row, Words range)
      : first_id((range.begin + threadIdx.x) * 4 - row.logits.lead), is_bad(false) {
    const bool lists_all = row.lists_all();
#pragma unroll
    for (std::uint32_t w = 0; w < kWordsPerThread; ++w) {
      const std::uint32_t word = range.begin + threadIdx.x + w * kThreads;
      constexpr float kNone = -INFINITY;
      words[w] = word < range.end ? row.logits.load(word) : float4{kNone, kNone, kNone, kNone};
    }
#pragma unroll
    for (std::uint32_t w = 0; w < kWordsPerThread; ++w) {
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        float& logit = element(words[w], i);
        is_bad = is_bad || !(logit < INFINITY);
        if (!lists_all && !row.keeps(logit, first_id + id_at(w, i), row.weight(logit))) {
          logit = -INFINITY;
        }
      }
    }
  }

  template <typename Use>  // use(logit, id)
  __device__ void for_each(Use use) {
#pragma unroll
    for (std::uint32_t w = 0; w < kWordsPerThread; ++w) {
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) use(element(words[w], i), first_id + id_at(w, i));
    }
  }

  // The key of the best id that is left but `taken`, which is left out from now on.
  __device__ std::uint64_t next_best(std::uint32_t taken) {
    float best = -INFINITY;
    std::uint32_t best_id = 0;
#pragma unroll
    for (std::uint32_t w = 0; w < kWordsPerThread; ++w) {
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        float& logit = element(words[w], i);
        if (first_id + id_at(w, i) == taken) logit = -INFINITY;
        if (logit > best) {
          best = logit;
          best_id = first_id + id_at(w, i);
        }
      }
    }
    return best > -INFINITY ? rank_key(best, best_id) : kNoKey;
  }
};

// A logit that at least `count` of the share's reach: a lower one is none of its `count` best. Each
// warp has that many of them among the best of its threads, if all have equally many.
__device__ float lowest_wanted(std::uint64_t mine, std::uint32_t count) {
  constexpr std::uint32_t kWarps = kThreads / 32;
  constexpr std::uint32_t kAll = 0xFFFFFFFF;
  __shared__ std::uint32_t ranks[kWarps];
  const std::uint32_t lane = threadIdx.x % 32;
  auto rank = static_cast<std::uint32_t>(mine >> 32);
  std::uint32_t last = 0;
  for (std::uint32_t found = 0; found < count; found += kWarps) {
    last = __reduce_min_sync(kAll, rank);
    const std::uint32_t has_it = __ballot_sync(kAll, rank == last);
    if (lane == __ffs(has_it) - 1) rank = kNoRank;
  }
  if (lane == 0) ranks[threadIdx.x / 32] = last;
  __syncthreads();
#pragma unroll
  for (const std::uint32_t other : ranks) last = max(last, other);
  return last == kNoRank ? -INFINITY : logit_of(std::uint64_t{last} << 32);
}

// The keys of a share's best ids, in order, if few logits come into question. A key's place is the
// number of those before it.
__device__ bool rank_few(Share& share, std::uint64_t mine, std::uint32_t count,
                         std::uint64_t* keys) {
  __shared__ std::uint64_t candidates[kThreads];
  __shared__ std::uint32_t num_candidates;
  if (threadIdx.x == 0) num_candidates = 0;
  if (__syncthreads_or(share.is_bad) != 0) return false;
  const float lowest = lowest_wanted(mine, count);
  share.for_each([&](float logit, std::uint32_t id) {
    if (!(logit >= lowest) || logit == -INFINITY) return;
    const std::uint32_t at = atomicAdd(&num_candidates, 1);
    if (at < kThreads) candidates[at] = rank_key(logit, id);
  });
  __syncthreads();
  const std::uint32_t size = num_candidates;
  if (size > kThreads) return false;
  if (threadIdx.x < size) {
    const std::uint64_t key = candidates[threadIdx.x];
    std::uint32_t place = 0;
    for (std::uint32_t i = 0; i < size; ++i) place += candidates[i] < key ? 1 : 0;
    if (place < count) keys[place] = key;
  } else if (threadIdx.x < count) {
    keys[threadIdx.x] = kNoKey;
  }
  __syncthreads();
  return true;
}

// The keys of a share's best ids, in order.
__device__ void rank_share(Share& share, std::uint32_t count, std::uint64_t* keys) {
  constexpr std::uint32_t kNone = 0xFFFFFFFF;  // no id
  std::uint64_t mine = share.next_best(kNone);
  if (count > 1 && rank_few(share, mine, count, keys)) return;
  if (share.is_bad) mine = kBadKey;
  std::uint64_t best = kNoKey;
  std::uint32_t i = 0;
  do {
    best = block_min<kThreads>(mine);
    if (threadIdx.x == 0) keys[i] = best;
    ++i;
    if (mine == best) mine = share.next_best(static_cast<std::uint32_t>(best));
  } while (i < count && best != kBadKey && best != kNoKey);
  for (; threadIdx.x == 0 && i < count; ++i) keys[i] = best;
}

// The `count` smallest of the parts' keys, in order, into `best` [kMaxTop] in shared memory: a
// key's place is the number of those before it. The parts' first keys come first, then their
// second ones, so that those which come into question are few warps' work.
__device__ void merge_parts(ScoreRecord& record, std::uint32_t count, std::uint64_t* best) {
  constexpr std::uint32_t kAtOnce = 32;  // parts
  __shared__ std::uint64_t keys[(kAtOnce + 1) * kMaxTop];
  if (threadIdx.x < kMaxTop) best[threadIdx.x] = kNoKey;
  __syncthreads();
  for (std::uint32_t first = 0; first < gridDim.x; first += kAtOnce) {
    const std::uint32_t parts = min(kAtOnce, gridDim.x - first);
    const std::uint32_t columns = parts + 1;
    const std::uint32_t size = columns * count;
    for (std::uint32_t i = threadIdx.x; i < size; i += kThreads) {
      const std::uint32_t part = i % columns;
      const std::uint32_t rank = i / columns;
      const auto* from =
          reinterpret_cast<const unsigned long long*>(part_keys(record, first + part - 1) + rank);
      keys[i] = part == 0 ? best[rank] : __ldcg(from);
    }
    __syncthreads();
    // So many of every part are `count` keys.
    const std::uint32_t last_rank = (count + parts - 1) / parts - 1;
    std::uint64_t last = 0;
    for (std::uint32_t part = 1; part < columns; ++part) {
      last = max(last, keys[last_rank * columns + part]);
    }
    for (std::uint32_t i = threadIdx.x; i < size; i += kThreads) {
      const std::uint64_t key = keys[i];
      if (key == kNoKey || key > last) continue;
      std::uint32_t place = 0;
      for (std::uint32_t other = 0; other < size; ++other) {
        place += keys[other] < key || (keys[other] == key && other < i) ? 1 : 0;
      }
      if (place < count) best[place] = key;
    }
    __syncthreads();
  }
}

__device__ void finish_top(const ScoreCudaArgs& args, const ScoredRow& scored,
                           ScoreRecord& record) {
  __shared__ std::uint64_t best[kMaxTop];
  const std::uint32_t row = blockIdx.y;
  const std::uint32_t num_top = args.rows[row].num_top;
  merge_parts(record, num_ranked(args.rows[row]), best);
  const bool is_valid = best[0] != kBadKey && best[0] != kNoKey;
  const std::uint64_t key = threadIdx.x < num_top ? best[threadIdx.x] : kNoKey;
  if (is_valid && key != kNoKey) {
    // The logit itself: a key has +0 for -0.
    const auto id = static_cast<std::uint32_t>(key);
    args.top[std::size_t{row} * kMaxTop + threadIdx.x] = {id, scored.logits.first[id]};
  }
  const auto found = static_cast<std::uint32_t>(__syncthreads_count(key != kNoKey));
  if (threadIdx.x != 0) return;
  record.is_valid = is_valid ? 1 : 0;
  RowScore score{.temperature = scored.kept.temperature};
  if (is_valid) {
    score.max = logit_of(best[0]);
    score.num_top = found;
  }
  args.scores[row] = score;
}

__global__ void __launch_bounds__(kThreads) top_kernel(ScoreCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  if (!is_scored(args, row)) return;
  const ScoredRow scored(args, row);
  ScoreRecord& record = score_record(args, row);
  Share share(scored, scored.logits.part(blockIdx.x, gridDim.x));
  rank_share(share, num_ranked(args.rows[row]), part_keys(record, blockIdx.x));
  if (finish_part(record.finished)) finish_top(args, scored, record);
}

__global__ void __launch_bounds__(kThreads) mass_kernel(ScoreCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  ScoreRecord& record = score_record(args, row);
  if (!is_scored(args, row) || record.is_valid == 0) return;
  ScoredRow scored(args, row);
  scored.kept.max = args.scores[row].max;
  const bool counts_all = scored.counts_all();
  std::uint64_t sum = 0;
  for_each_logit<kThreads>(scored.logits, scored.logits.part(blockIdx.x, gridDim.x),
                           [&](float logit, std::uint32_t id) {
                             const float weight = scored.weight(logit);
                             if (counts_all || scored.keeps(logit, id, weight)) {
                               sum += __float2ull_rz(weight);
                             }
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
