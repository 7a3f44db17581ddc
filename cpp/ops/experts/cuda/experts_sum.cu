// What stands around the products: the pairs sorted, and their outputs summed.
#include "ops/cuda/row.cuh"
#include "ops/experts/cuda/experts_plan.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kSortThreads = 1024;
constexpr std::uint32_t kBlockPairs = 1024;  // that a block places

__global__ void __launch_bounds__(kSortThreads)
    sort_pairs_kernel(const PairRouting routing, const SortedPairs sorted) {
  __shared__ std::uint32_t counts[(kSortThreads / 32 + 2) * kMaxExperts];
  __shared__ std::uint32_t starts[kMaxExperts + 1];
  wait_for_previous();
  let_next_start();
  const std::uint32_t begin = min(blockIdx.x * kBlockPairs, routing.num_pairs);
  const std::uint32_t end = min(begin + kBlockPairs, routing.num_pairs);
  experts::PairSort{routing, begin, end, counts, starts, sorted.order, sorted.positions}.run();
  if (blockIdx.x > 0) return;
  for (std::uint32_t i = threadIdx.x; i <= routing.num_experts; i += kSortThreads) {
    sorted.starts[i] = starts[i];
  }
}

// A token's experts, ascending.
struct Choices {
  std::uint32_t rows[kMaxExpertsPerToken];  // of outputs
  float weights[kMaxExpertsPerToken];
  std::uint32_t count;
};

__device__ void load_choices(const ExpertsSum& args, Choices& choices) {
  const std::uint32_t k = args.routing.experts_per_token;
  const std::uint32_t lane = threadIdx.x;
  if (lane >= 32) return;
  const std::uint32_t pair = blockIdx.x * k + lane;
  const std::uint32_t id = lane < k ? args.routing.expert_ids[pair] : kNoExpert;
  const bool exists = id < args.routing.num_experts;
  std::uint32_t place = 0;
  for (std::uint32_t i = 0; i < k; ++i) {
    const std::uint32_t other = __shfl_sync(0xFFFFFFFFU, id, static_cast<int>(i));
    if (other < id || (other == id && i < lane)) ++place;
  }
  if (exists) {
    choices.rows[place] = args.positions == nullptr ? pair : args.positions[pair];
    choices.weights[place] = args.weights[pair];
  }
  const std::uint32_t count = __popc(__ballot_sync(0xFFFFFFFFU, exists));
  if (lane == 0) choices.count = count;
}

// A block for each token. Sums go up with the experts' ids.
template <typename Element, int kPacks>
__global__ void __launch_bounds__(kMaxRowThreads) sum_kernel(const ExpertsSum args) {
  __shared__ Choices choices;
  let_next_start();
  const std::uint32_t width = args.hidden_size;
  RowPart<kPacks> norm_weight{};
  if (args.next.weight != nullptr) norm_weight = load_row<kPacks>(args.next.weight, width);
  wait_for_previous();
  float* row = args.x + std::size_t{blockIdx.x} * width;
  RowPart<kPacks> x{};
  if (args.add) x = load_row<kPacks>(row, width);
  load_choices(args, choices);
  __syncthreads();
  RowPart<kPacks> sum{};
  for (std::uint32_t i = 0; i < choices.count; ++i) {
    const Element* from =
        static_cast<const Element*>(args.outputs) + std::size_t{choices.rows[i]} * width;
    for_each_row_pack<kPacks>(width, [&](int p, std::uint32_t column) {
      const auto pack = load_pack<Element, kRowPack>(from + column);
#pragma unroll
      for (int j = 0; j < kRowPack; ++j) {
        sum.packs[p].at[j] = fmaf(choices.weights[i], to_float(pack.at[j]), sum.packs[p].at[j]);
      }
    });
  }
  for_each_row_pack<kPacks>(width, [&](int p, std::uint32_t column) {
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      x.packs[p].at[j] = fmaf(args.scale, sum.packs[p].at[j], x.packs[p].at[j]);
    }
    store_pack(row + column, x.packs[p]);
  });
  if (args.next.weight == nullptr) return;
  store_row(normalized(x, norm_weight, args.next.eps, width), width,
            static_cast<Element*>(args.next.h) + std::size_t{blockIdx.x} * width);
}

}  // namespace

void sort_pairs_cuda(const CudaOp& op, const PairRouting& routing, const SortedPairs& sorted) {
  const std::uint32_t blocks = (routing.num_pairs + kBlockPairs - 1) / kBlockPairs;
  launch(op, sort_pairs_kernel, {blocks, kSortThreads}, routing, sorted);
}

void sum_experts_cuda(const CudaOp& op, const ExpertsSum& sum) {
  with_element(sum.dtype, [&](auto element) {
    launch_by_hidden_size(sum.hidden_size, [&](auto packs, std::uint32_t threads) {
      const std::uint32_t block = threads < 32 ? 32 : threads;
      launch(op, sum_kernel<decltype(element), packs()>, {sum.num_tokens, block}, sum);
    });
  });
}

}  // namespace inferno::ops::cuda
