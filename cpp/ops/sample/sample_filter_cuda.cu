// Top-k and top-p: the last rank that they keep. The tokens are counted and weighed by their
// distance from the best one, as on the CPU, by several blocks for each row; then one block for
// each row finds the bucket where the cut lies and ranks its tokens only.
#include "ops/sample/sample_cuda.cuh"

namespace inferno::ops::cuda {
namespace {

// Adds to a 64-bit sum in shared memory, which has no such atomic of its own, by halves.
__device__ void add_mass(std::uint32_t* low, std::uint32_t* high, std::uint64_t mass) {
  const auto low_part = static_cast<std::uint32_t>(mass);
  const std::uint32_t carry = atomicAdd(low, low_part) > ~low_part ? 1 : 0;
  const std::uint32_t high_part = static_cast<std::uint32_t>(mass >> 32) + carry;
  if (high_part != 0) atomicAdd(high, high_part);
}

// Counts and masses in shared memory.
template <std::uint32_t kBins>
struct Bins {
  std::uint32_t counts[kBins];
  std::uint32_t low[kBins];
  std::uint32_t high[kBins];

  __device__ void clear() {
    for (std::uint32_t i = threadIdx.x; i < kBins; i += blockDim.x) {
      counts[i] = low[i] = high[i] = 0;
    }
  }
  __device__ void add(std::uint32_t bin, std::uint64_t mass) {
    atomicAdd(&counts[bin], 1U);
    add_mass(&low[bin], &high[bin], mass);
  }
  __device__ std::uint64_t mass(std::uint32_t bin) const {
    return std::uint64_t{high[bin]} << 32 | low[bin];
  }
};

constexpr std::uint32_t kHistogramThreads = 512;

__global__ void __launch_bounds__(kHistogramThreads) histogram_kernel(SampleCudaArgs args) {
  __shared__ Bins<kNumBuckets> bins;
  let_next_start();
  bins.clear();
  wait_for_previous();
  const std::uint32_t row = blockIdx.y;
  RowRecord& record = record_of(args, row);
  if (record.is_drawn == 0 || !filters_by_rank(args.params[row])) return;
  __syncthreads();
  const RowLogits logits = drawn_logits(args, row);
  const Log2Weight log2_weight = record.log2_weight;
  for_each_logit<kHistogramThreads>(logits, logits.part(blockIdx.x, gridDim.x),
                                    [&](float logit, std::uint32_t) {
                                      const float y = log2_weight(logit);
                                      const std::uint64_t weight = whole_weight(y);
                                      if (weight != 0) bins.add(bucket_of(y), weight);
                                    });
  __syncthreads();
  for (std::uint32_t bucket = threadIdx.x; bucket < kNumBuckets; bucket += kHistogramThreads) {
    if (bins.counts[bucket] == 0) continue;
    atomicAdd(&record.counts[bucket], bins.counts[bucket]);
    atomicAdd(reinterpret_cast<unsigned long long*>(&record.masses[bucket]), bins.mass(bucket));
  }
}

// --- The cut, by one block for each row.

constexpr std::uint32_t kThreads = 1024;
constexpr std::uint32_t kMaxRanked = 2048;
constexpr int kKeyBits = 10;  // told apart by one pass over a bucket that is too large to rank
constexpr std::uint32_t kKeyBins = 1U << kKeyBits;

struct CutShared {
  std::uint64_t ranked[kMaxRanked];
  std::uint32_t num_ranked;
  Bins<kKeyBins> bins;
};

// Tokens of neighbouring buckets: those whose log2 weight is above one bound and up to another, and
// whose keys are from first to last.
struct Members {
  float above;
  float up_to;
  std::uint32_t count;
  std::uint64_t first = 0;
  std::uint64_t last = kKeepAll;
};

__device__ Members members_of(std::uint32_t first_bucket, std::uint32_t last_bucket,
                              std::uint32_t count) {
  constexpr float kWidth = 1.0F / kBucketsPerOctave;
  return {-kWidth * static_cast<float>(last_bucket + 1), -kWidth * static_cast<float>(first_bucket),
          count};
}

struct Cut {
  std::uint64_t key;
  std::uint64_t mass;            // of the members up to it
  std::uint32_t num_ranked = 0;  // where the best tokens of the row lie ranked, how many
};

enum class Measure { kCount, kMass };

__device__ std::uint64_t measured(Measure measure, std::uint64_t count, std::uint64_t mass) {
  return measure == Measure::kCount ? count : mass;
}

struct CutRow {
  const RowLogits& logits;
  const RowRecord& record;
  Log2Weight log2_weight;
  CutShared& shared;

  __device__ std::uint64_t weight_of_key(std::uint64_t key) const {
    return whole_weight(log2_weight(logit_of(key)));
  }

  // Calls fn(key, weight) for each member.
  template <typename Fn>
  __device__ void for_each_member(const Members& members, Fn fn) const {
    for_each_logit<kThreads>(logits, logits.words(), [&](float logit, std::uint32_t id) {
      const float y = log2_weight(logit);
      if (!(y > members.above && y <= members.up_to)) return;
      const std::uint64_t key = rank_key(logit, id);
      const std::uint64_t weight = whole_weight(y);
      if (weight != 0 && members.first <= key && key <= members.last) fn(key, weight);
    });
  }

  // One pass: leaves those whose next kKeyBits bits are the cut's. Returns the mass of those that
  // rank higher, and takes them from `wanted`.
  __device__ std::uint64_t narrow(Members& members, int shift, Measure measure,
                                  std::uint64_t& wanted) const {
    Bins<kKeyBins>& bins = shared.bins;
    __syncthreads();
    bins.clear();
    __syncthreads();
    for_each_member(members, [&](std::uint64_t key, std::uint64_t weight) {
      bins.add(static_cast<std::uint32_t>((key - members.first) >> shift), weight);
    });
    __syncthreads();
    const Found found = find_reaching<kThreads>(kKeyBins, wanted, [&](std::uint32_t bin) {
      return measured(measure, bins.counts[bin], bins.mass(bin));
    });
    wanted -= found.before;
    members.first += std::uint64_t{found.index} << shift;
    members.last = members.first + ((std::uint64_t{1} << shift) - 1);
    members.count = bins.counts[found.index];
    return block_sum<kThreads>(threadIdx.x < found.index ? bins.mass(threadIdx.x) : 0);
  }

  // The members' keys in ascending order, by a bitonic network.
  __device__ void rank(const Members& members) const {
    if (threadIdx.x == 0) shared.num_ranked = 0;
    __syncthreads();
    for_each_member(members, [&](std::uint64_t key, std::uint64_t) {
      shared.ranked[atomicAdd(&shared.num_ranked, 1U)] = key;
    });
    std::uint32_t size = 1;
    while (size < members.count) size *= 2;
    for (std::uint32_t i = members.count + threadIdx.x; i < size; i += kThreads) {
      shared.ranked[i] = kKeepAll;
    }
    for (std::uint32_t run = 2; run <= size; run *= 2) {
      for (std::uint32_t step = run / 2; step > 0; step /= 2) {
        __syncthreads();
        for (std::uint32_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
          const std::uint32_t low = pair / step * 2 * step + pair % step;
          const std::uint64_t a = shared.ranked[low];
          const std::uint64_t b = shared.ranked[low + step];
          if ((a > b) != ((low & run) != 0)) {
            shared.ranked[low] = b;
            shared.ranked[low + step] = a;
          }
        }
      }
    }
    __syncthreads();
  }

  // The shortest run of the ranked tokens, from the first, that holds `wanted`.
  __device__ Cut cut_ranked(std::uint32_t num_ranked, Measure measure, std::uint64_t wanted) const {
    const auto weight = [&](std::uint32_t i) { return weight_of_key(shared.ranked[i]); };
    const Found found = find_reaching<kThreads>(
        num_ranked, wanted, [&](std::uint32_t i) { return measured(measure, 1, weight(i)); });
    std::uint64_t sum = 0;
    for (std::uint32_t i = threadIdx.x; i <= found.index; i += kThreads) sum += weight(i);
    return {shared.ranked[found.index], block_sum<kThreads>(sum)};
  }

  __device__ Cut cut(Members members, Measure measure, std::uint64_t wanted) const {
    std::uint64_t mass = 0;
    for (int shift = 64 - kKeyBits; members.count > kMaxRanked; shift -= kKeyBits) {
      mass += narrow(members, shift, measure, wanted);
    }
    rank(members);
    Cut cut = cut_ranked(members.count, measure, wanted);
    cut.mass += mass;
    return cut;
  }
};

__device__ std::uint64_t mass_before(const RowRecord& record, std::uint32_t bucket) {
  std::uint64_t sum = 0;
  for (std::uint32_t i = threadIdx.x; i < bucket; i += kThreads) sum += record.masses[i];
  return block_sum<kThreads>(sum);
}

__device__ Cut cut_by_count(const CutRow& row, std::uint32_t top_k) {
  const RowRecord& record = row.record;
  if (top_k == 0) return {kKeepAll, mass_before(record, kNumBuckets)};
  const Found found = find_reaching<kThreads>(
      kNumBuckets, top_k, [&](std::uint32_t bucket) { return record.counts[bucket]; });
  const std::uint32_t bucket = found.index;
  if (bucket == kNumBuckets) return {kKeepAll, mass_before(record, kNumBuckets)};
  const auto before = static_cast<std::uint32_t>(found.before);
  const std::uint32_t count = record.counts[bucket];
  if (before + count <= kMaxRanked) {  // all the best at once, which top-p can use
    Cut cut = row.cut(members_of(0, bucket, before + count), Measure::kCount, top_k);
    cut.num_ranked = before + count;
    return cut;
  }
  Cut cut = row.cut(members_of(bucket, bucket, count), Measure::kCount, top_k - before);
  cut.mass += mass_before(record, bucket);
  return cut;
}

// The shortest run of the ranking, from its top, that holds top_p of what top-k kept.
__device__ std::uint64_t cut_by_mass(const CutRow& row, float top_p, const Cut& kept) {
  if (!(top_p < 1)) return kept.key;
  const double wanted = __dmul_rn(static_cast<double>(top_p), __ull2double_rn(kept.mass));
  const std::uint64_t target =
      min(max(__double2ull_rz(wanted), 1ULL), static_cast<unsigned long long>(kept.mass));
  if (kept.num_ranked != 0) return row.cut_ranked(kept.num_ranked, Measure::kMass, target).key;
  const RowRecord& record = row.record;
  const Found found = find_reaching<kThreads>(
      kNumBuckets, target, [&](std::uint32_t bucket) { return record.masses[bucket]; });
  const Members members = members_of(found.index, found.index, record.counts[found.index]);
  return row.cut(members, Measure::kMass, target - found.before).key;
}

__global__ void __launch_bounds__(kThreads) cut_kernel(SampleCudaArgs args) {
  __shared__ CutShared shared;
  let_next_start();
  wait_for_previous();
  const std::uint32_t index = blockIdx.x;
  RowRecord& record = record_of(args, index);
  const SampleParams& params = args.params[index];
  if (record.is_drawn == 0 || !filters_by_rank(params)) return;
  const RowLogits logits = drawn_logits(args, index);
  const CutRow row{logits, record, record.log2_weight, shared};
  const std::uint64_t key = cut_by_mass(row, params.top_p, cut_by_count(row, params.top_k));
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < kNumBuckets; i += kThreads) {
    record.counts[i] = 0;
    record.masses[i] = 0;
  }
  if (threadIdx.x != 0) return;
  record.last_key = key;
  if (args.kept != nullptr) args.kept[index].last_key = key;
}

}  // namespace

void launch_rank_filter(const CudaOp& op, const SampleCudaArgs& args) {
  const RowParts parts{args.num_rows, args.vocab_size};
  const std::uint32_t count = parts.count(4 * op.num_sms, 2048, 32768);
  launch(op, histogram_kernel, {dim3(count, args.num_rows), kHistogramThreads}, args);
  launch(op, cut_kernel, {args.num_rows, kThreads}, args);
}

}  // namespace inferno::ops::cuda
