// A row is shared by several blocks, each of which owns the ids of its share: first it writes what
// masks and penalties make of them, then, over that, the few that have a bias or end a banned word.
#include <cfloat>
#include <cmath>

#include "ops/process_logits/process_logits_cuda.h"
#include "ops/sample/sample_cuda.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;

__device__ bool is_finite(float logit) { return logit > -INFINITY && logit < INFINITY; }

__device__ float largest_at_most(float logit) { return logit < FLT_MAX ? logit : FLT_MAX; }

// The rules of one row, with the state that they read.
struct RuledRow {
  LogitRules rules;
  const std::uint32_t* seat_mask;
  const std::uint32_t* step_mask;
  const std::uint16_t* counts;

  __device__ RuledRow(const ProcessLogitsCudaArgs& args, std::uint32_t row)
      : rules(args.rules[row]), seat_mask(nullptr), step_mask(nullptr), counts(nullptr) {
    const SeatStates& states = args.states;
    const std::size_t words = mask_words(states.vocab_size);
    const std::size_t seat = rules.seat;
    if (rules.seat_mask != SeatMask::kNone) {
      seat_mask = states.masks + (seat * 2 + static_cast<std::size_t>(rules.seat_mask)) * words;
    }
    if (rules.mask_row != kNoMaskRow) step_mask = args.masks + rules.mask_row * words;
    if (rules.has_penalties != 0) counts = states.counts + seat * counts_stride(states.vocab_size);
  }

  __device__ bool allows(std::uint32_t id) const {
    const auto holds = [&](const std::uint32_t* mask) {
      return mask == nullptr || (mask[id / 32] >> (id % 32) & 1) != 0;
    };
    return holds(seat_mask) && holds(step_mask);
  }

  __device__ std::uint32_t count(std::uint32_t id) const {
    return counts == nullptr ? 0 : counts[id];
  }

  __device__ float penalised(float logit, std::uint32_t count) const {
    if (count == 0 || !is_finite(logit)) return logit;
    const float r = rules.repetition_penalty;
    logit = logit > 0 ? largest_at_most(__fdiv_rn(logit, r)) : __fmul_rn(logit, r);
    const std::uint32_t times = count & kMaxCount;
    if (times != 0) {
      const float frequency = __fmul_rn(rules.frequency_penalty, static_cast<float>(times));
      logit = __fsub_rn(__fsub_rn(logit, frequency), rules.presence_penalty);
    }
    return largest_at_most(logit);
  }

  // An id without a bias.
  __device__ float plain(float logit, std::uint32_t id, std::uint32_t count) const {
    if (!is_finite(logit)) return logit;
    return allows(id) ? penalised(logit, count) : -INFINITY;
  }

  __device__ float biased(float logit, const TokenBias& bias) const {
    if (!is_finite(logit)) return logit;
    if (!allows(bias.token_id)) return -INFINITY;
    const float sum = largest_at_most(__fadd_rn(logit, bias.value));
    return penalised(sum, count(bias.token_id));
  }

  // Whether the tokens before the last of a banned word are the sequence's last.
  __device__ bool precedes(const std::uint32_t* word, std::uint32_t num_before,
                           const std::uint32_t* tail) const {
    if (num_before > rules.position) return false;
    for (std::uint32_t i = 0; i < num_before; ++i) {
      if (tail[(rules.position - num_before + i) % kTailLen] != word[i]) return false;
    }
    return true;
  }
};

__device__ void store_word(const RowLogits& row, std::uint32_t word, const float4& logits) {
  const std::int64_t id = std::int64_t{word} * 4 - row.lead;
  if (id >= 0 && id + 4 <= row.vocab_size) {
    *reinterpret_cast<float4*>(row.first + id) = logits;
    return;
  }
  const auto store_one = [&](std::int64_t at, float logit) {
    if (at >= 0 && at < row.vocab_size) row.first[at] = logit;
  };
  store_one(id, logits.x);
  store_one(id + 1, logits.y);
  store_one(id + 2, logits.z);
  store_one(id + 3, logits.w);
}

// Several loads ahead, since no load may pass a store.
__device__ void process_all(const RuledRow& ruled, const RowLogits& in, const RowLogits& out,
                            Words words) {
  constexpr std::uint32_t kAhead = 4;
  for (std::uint32_t at = words.begin + threadIdx.x; at < words.end; at += kAhead * kThreads) {
    float4 logits[kAhead];
    std::uint32_t counts[kAhead][4];
#pragma unroll
    for (std::uint32_t i = 0; i < kAhead; ++i) {
      const std::uint32_t word = at + i * kThreads;
      if (word >= words.end) continue;
      logits[i] = in.load(word);
#pragma unroll
      for (std::uint32_t j = 0; j < 4; ++j) {
        const std::uint32_t id = word * 4 - in.lead + j;
        counts[i][j] = id < in.vocab_size ? ruled.count(id) : 0;
      }
    }
#pragma unroll
    for (std::uint32_t i = 0; i < kAhead; ++i) {
      const std::uint32_t word = at + i * kThreads;
      if (word >= words.end) continue;
      const std::uint32_t id = word * 4 - in.lead;  // those beyond the row are -infinity
      store_word(out, word,
                 {ruled.plain(logits[i].x, id, counts[i][0]),
                  ruled.plain(logits[i].y, id + 1, counts[i][1]),
                  ruled.plain(logits[i].z, id + 2, counts[i][2]),
                  ruled.plain(logits[i].w, id + 3, counts[i][3])});
    }
  }
}

__global__ void __launch_bounds__(kThreads) process_kernel(ProcessLogitsCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  const RuledRow ruled(args, row);
  const LogitRules& rules = ruled.rules;
  if (!rules.change_logits()) return;
  const RowLogits in(args.logits, row, args.states.vocab_size);
  const RowLogits out(args.out, row, args.states.vocab_size);
  const Words words = in.part(blockIdx.x, gridDim.x);
  process_all(ruled, in, out, words);
  const auto is_ours = [&](std::uint32_t id) {
    const std::uint32_t word = (id + in.lead) / 4;
    return words.begin <= word && word < words.end;
  };
  const std::size_t seat = rules.seat;
  __syncthreads();
  const TokenBias* biases = args.states.biases + seat * kMaxBiases;
  for (std::uint32_t i = threadIdx.x; i < rules.num_biases; i += kThreads) {
    const TokenBias bias = biases[i];
    if (is_ours(bias.token_id)) {
      out.first[bias.token_id] = ruled.biased(in.first[bias.token_id], bias);
    }
  }
  __syncthreads();
  const std::uint32_t* ids = args.states.word_ids + seat * kMaxBannedWordTokens;
  const std::uint32_t* ends = args.states.word_ends + seat * kMaxBannedWords;
  const std::uint32_t* tail = args.states.tails + seat * kTailLen;
  for (std::uint32_t word = threadIdx.x; word < rules.num_banned_words; word += kThreads) {
    const std::uint32_t begin = word == 0 ? 0 : ends[word - 1];
    const std::uint32_t last = ends[word] - 1;
    const std::uint32_t id = ids[last];
    if (!is_ours(id) || !is_finite(in.first[id])) continue;
    if (ruled.precedes(ids + begin, last - begin, tail)) out.first[id] = -INFINITY;
  }
}

__global__ void __launch_bounds__(kThreads) note_kernel(NoteSampledCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= args.num_rows || args.sampled[row].status != SampleStatus::kOk) return;
  const LogitRules& rules = args.rules[row];
  const std::size_t seat = rules.seat;
  const std::uint32_t token_id = args.sampled[row].token_id;
  if (rules.num_banned_words != 0) {
    args.states.tails[seat * kTailLen + rules.position % kTailLen] = token_id;
  }
  if (rules.has_penalties != 0) {
    std::uint16_t& count =
        args.states.counts[seat * counts_stride(args.states.vocab_size) + token_id];
    if ((count & kMaxCount) < kMaxCount) ++count;
  }
}

constexpr std::uint32_t kCountThreads = 1024;

// One more in a half of a word, up to kMaxCount.
__device__ void count_up_to_most(std::uint32_t* word, std::uint32_t shift) {
  std::uint32_t seen = *word;
  while ((seen >> shift & kMaxCount) < kMaxCount) {
    const std::uint32_t before = atomicCAS(word, seen, seen + (1U << shift));
    if (before == seen) return;
    seen = before;
  }
}

__global__ void __launch_bounds__(kCountThreads) count_kernel(CountTokensCudaArgs args) {
  let_next_start();
  wait_for_previous();
  auto* all = reinterpret_cast<uint4*>(args.counts);
  const std::size_t size = counts_stride(args.vocab_size) / 8;
  for (std::size_t i = threadIdx.x; i < size; i += kCountThreads) all[i] = {0, 0, 0, 0};
  __syncthreads();
  auto* words = reinterpret_cast<std::uint32_t*>(args.counts);
  const bool is_short = args.num_tokens - min(args.num_tokens, args.prompt_len) <= kMaxCount;
  for (std::uint32_t i = threadIdx.x; i < args.num_tokens; i += kCountThreads) {
    const std::uint32_t id = args.token_ids[i];
    const std::uint32_t shift = id % 2 * 16;
    if (i < args.prompt_len) {
      atomicOr(words + id / 2, std::uint32_t{kInPrompt} << shift);
    } else if (is_short) {
      atomicAdd(words + id / 2, 1U << shift);  // no count can pass kMaxCount
    } else {
      count_up_to_most(words + id / 2, shift);
    }
  }
}

}  // namespace

void process_logits_cuda(const CudaOp& op, const ProcessLogitsCudaArgs& args) {
  if (args.num_rows == 0) return;
  const RowParts parts{args.num_rows, args.states.vocab_size};
  launch(op, process_kernel,
         {dim3(parts.count(8 * op.num_sms, 1024, 8192), args.num_rows), kThreads}, args);
}

void note_sampled_cuda(const CudaOp& op, const NoteSampledCudaArgs& args) {
  if (args.num_rows == 0) return;
  launch(op, note_kernel, {(args.num_rows + kThreads - 1) / kThreads, kThreads}, args);
}

void count_tokens_cuda(const CudaOp& op, const CountTokensCudaArgs& args) {
  if (args.vocab_size == 0) return;
  launch(op, count_kernel, {1, kCountThreads}, args);
}

}  // namespace inferno::ops::cuda
