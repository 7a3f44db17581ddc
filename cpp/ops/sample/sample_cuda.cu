// Several blocks share a row. The scan finds the best token, which answers greedy rows; the filter
// finds the last rank that top-k and top-p keep; the draw sums what is kept. In scan and draw the
// last block of a row to finish puts the parts together.
#include <cfloat>

#include "ops/embed/embed_cuda.h"
#include "ops/sample/sample_cuda.cuh"
#include "ops/sample/sample_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint64_t kBadKey = 0;  // before every rank: the row has a NaN or +infinity

__device__ bool is_bad(float logit) { return !(logit < INFINITY); }

__device__ void answer(const SampleCudaArgs& args, std::uint32_t row, Sampled sampled) {
  args.sampled[row] = sampled;
  const std::uint32_t seat = args.seats[row];
  if (sampled.status == SampleStatus::kOk && seat != kNoSeat) {
    args.sampled_ids[seat] = sampled.token_id;
  }
}

// Publishes this block's part of the row. True in the block that comes last, which sees all parts.
__device__ bool publish_part(RowRecord& record, std::uint64_t value) {
  if (threadIdx.x == 0) record.parts[blockIdx.x] = value;
  return finish_part(record.finished);
}

__device__ std::uint64_t part_value(const RowRecord& record, std::uint32_t part) {
  return __ldcg(reinterpret_cast<const unsigned long long*>(&record.parts[part]));
}

__device__ void finish_scan(const SampleCudaArgs& args, std::uint32_t row, std::uint64_t best_key) {
  const SampleParams& params = args.params[row];
  RowRecord& record = record_of(args, row);
  const float max = logit_of(best_key);
  record.is_drawn = 0;
  Kept kept{.max = max};
  if (best_key == kBadKey) {
    answer(args, row, {SampleStatus::kNotANumber, 0});
  } else if (max == -INFINITY) {
    answer(args, row, {SampleStatus::kNothingLeft, 0});
  } else if (!args.any_random || params.temperature == 0) {
    answer(args, row, {SampleStatus::kOk, static_cast<std::uint32_t>(best_key)});
  } else {
    record.is_drawn = 1;
    record.log2_weight = {max, fminf(__fdiv_rn(kLog2E, params.temperature), FLT_MAX)};
    record.last_key = kKeepAll;
    kept = {.max = max,
            .temperature = params.temperature,
            .scale = record.log2_weight.scale,
            .least = fmaxf(least_weight(params), 1)};
  }
  if (args.kept != nullptr) args.kept[row] = kept;
}

__global__ void __launch_bounds__(kThreads) scan_kernel(SampleCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  const RowLogits logits = drawn_logits(args, row);
  const Words words = logits.part(blockIdx.x, gridDim.x);
  bool bad = false;
  float best = -INFINITY;
  std::uint32_t best_id = 0;
  for_each_logit<kThreads>(logits, words, [&](float logit, std::uint32_t id) {
    bad = bad || is_bad(logit);
    if (logit > best) {
      best = logit;
      best_id = id;
    }
  });
  RowRecord& record = record_of(args, row);
  if (!publish_part(record, block_min<kThreads>(bad ? kBadKey : rank_key(best, best_id)))) return;
  std::uint64_t key = kKeepAll;
  for (std::uint32_t part = threadIdx.x; part < gridDim.x; part += kThreads) {
    key = min(key, part_value(record, part));
  }
  key = block_min<kThreads>(key);
  if (threadIdx.x == 0) finish_scan(args, row, key);
}

// Words 0 and 1 of Philox4x32-10.
__device__ std::uint64_t random_of(const SampleParams& params) {
  std::uint32_t counter[4] = {params.position, 0, 0, 0};
  std::uint32_t key[2] = {static_cast<std::uint32_t>(params.seed),
                          static_cast<std::uint32_t>(params.seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter[0] = static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<std::uint32_t>(b);
    counter[2] = static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<std::uint32_t>(a);
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return static_cast<std::uint64_t>(counter[1]) << 32 | counter[0];
}

// Weights of one row after the filters.
struct KeptWeights {
  Log2Weight log2_weight;
  std::uint64_t last_key;
  float least;  // min-p

  __device__ std::uint64_t operator()(float logit, std::uint32_t id) const {
    if (rank_key(logit, id) > last_key) return 0;
    const float weight = weight_of(log2_weight(logit));
    return weight < least ? 0 : __float2ull_rz(weight);
  }
};

// The last block: the first id at which the running sum reaches `wanted`.
__device__ std::uint32_t find_token(const RowLogits& logits, const RowRecord& record,
                                    const KeptWeights& kept, std::uint64_t wanted) {
  const Found part = find_reaching<kThreads>(
      gridDim.x, wanted, [&](std::uint32_t index) { return part_value(record, index); });
  wanted -= part.before;
  const Words words = logits.part(part.index, gridDim.x);
  const Found found =
      find_reaching<kThreads>(words.end - words.begin, wanted, [&](std::uint32_t index) {
        std::uint64_t sum = 0;
        const std::uint32_t word = words.begin + index;
        logits.visit(word, logits.load(word),
                     [&](float logit, std::uint32_t id) { sum += kept(logit, id); });
        return sum;
      });
  std::uint64_t sum = found.before;
  std::uint32_t token_id = 0;
  const std::uint32_t word = words.begin + found.index;
  logits.visit(word, logits.load(word), [&](float logit, std::uint32_t id) {
    if (sum >= wanted) return;
    sum += kept(logit, id);
    token_id = id;
  });
  return token_id;
}

__global__ void __launch_bounds__(kThreads) draw_kernel(SampleCudaArgs args) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  RowRecord& record = record_of(args, row);
  if (record.is_drawn == 0) return;
  const SampleParams& params = args.params[row];
  const RowLogits logits = drawn_logits(args, row);
  const KeptWeights kept{record.log2_weight, record.last_key, least_weight(params)};
  std::uint64_t sum = 0;
  for_each_logit<kThreads>(logits, logits.part(blockIdx.x, gridDim.x),
                           [&](float logit, std::uint32_t id) { sum += kept(logit, id); });
  if (!publish_part(record, block_sum<kThreads>(sum))) return;
  std::uint64_t total = 0;
  for (std::uint32_t part = threadIdx.x; part < gridDim.x; part += kThreads) {
    total += part_value(record, part);
  }
  const std::uint64_t target = __umul64hi(random_of(params), block_sum<kThreads>(total));
  const std::uint32_t token_id = find_token(logits, record, kept, target + 1);
  if (threadIdx.x == 0) answer(args, row, {SampleStatus::kOk, token_id});
}

}  // namespace

void sample_cuda(const CudaOp& op, const SampleCudaArgs& args) {
  if (args.num_rows == 0) return;
  const RowParts parts{args.num_rows, args.vocab_size};
  const LaunchShape shape{dim3(parts.count(8 * op.num_sms, 1024, 8192), args.num_rows), kThreads};
  launch(op, scan_kernel, shape, args);
  if (!args.any_random) return;
  if (args.any_filter) launch_rank_filter(op, args);
  launch(op, draw_kernel, shape, args);
}

std::size_t sample_cuda_workspace_bytes(std::uint32_t max_rows, std::uint32_t /*vocab_size*/) {
  return std::size_t{max_rows} * sizeof(RowRecord);
}

}  // namespace inferno::ops::cuda
