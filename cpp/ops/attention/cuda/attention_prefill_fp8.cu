// attention_prefill over keys and values in e4m3, on every device: a block widens a tile once, on
// its way into shared memory, while the tensor cores have the one before.
#include "ops/attention/cuda/attention_kinds.cuh"
#include "ops/attention/cuda/attention_prefill_rows.cuh"
#include "ops/cuda/e4m3.cuh"

namespace inferno::ops::cuda {
namespace {

// A thread's share of a tile of keys and values, eight codes at a time.
template <typename Element, int kHeadDim>
class CodedTile {
  using Stage = PrefillStage<Element, kHeadDim>;
  static constexpr std::uint32_t kChunks = kHeadDim / 8;
  static constexpr int kShare = Stage::kKeys * kChunks / kPortableThreads;
  static_assert(Stage::kKeys * kChunks % kPortableThreads == 0);

 public:
  // Positions before the first that is seen and from num_keys on become zeros.
  __device__ void fetch(const PrefillParams& p, const PrefillTask& task, std::uint32_t first) {
    const std::uint32_t first_key = task.first_key<false>(p.rule);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const std::uint32_t chunk = threadIdx.x + i * kPortableThreads;
      const std::uint32_t position = first + chunk / kChunks;
      const bool valid = position >= first_key && position < task.num_keys;
      const std::size_t source = cache_row(p, task, position, valid) * kChunks + chunk % kChunks;
      k_[i] = valid ? static_cast<const uint2*>(p.k)[source] : make_uint2(0, 0);
      v_[i] = valid ? static_cast<const uint2*>(p.v)[source] : make_uint2(0, 0);
    }
  }

  __device__ void put(Stage& stage) const {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const std::uint32_t chunk = threadIdx.x + i * kPortableThreads;
      store(&stage.k[chunk / kChunks][chunk % kChunks * 8], k_[i]);
      store(&stage.v[chunk / kChunks][chunk % kChunks * 8], v_[i]);
    }
  }

 private:
  __device__ static void store(Element* to, uint2 codes) {
    const uint2 low = widened<Element>(codes.x);
    const uint2 high = widened<Element>(codes.y);
    *reinterpret_cast<uint4*>(to) = make_uint4(low.x, low.y, high.x, high.y);
  }

  uint2 k_[kShare];
  uint2 v_[kShare];
};

// Grid: tiles * KV heads.
template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(kPortableThreads, 1)
    attention_prefill_fp8_kernel(const __grid_constant__ PrefillParams p) {
  using Stage = PrefillStage<Element, kHeadDim>;
  extern __shared__ uint4 shared[];
  auto* stages = reinterpret_cast<Stage*>(shared);
  let_next_start();
  const PrefillTask task = prefill_task(p, blockIdx.x);
  wait_for_previous();
  std::uint32_t first = task.first_key<false>(p.rule) / Stage::kKeys * Stage::kKeys;
  CodedTile<Element, kHeadDim> tile;
  tile.fetch(p, task, first);
  tile.put(stages[0]);
  PrefillRows<Element, kHeadDim, false> rows(p, task);
  for (std::uint32_t i = 0; first < task.num_keys; first += Stage::kKeys, ++i) {
    // Beyond the end this is all zeros, and nobody reads it.
    tile.fetch(p, task, first + Stage::kKeys);
    // All have put their share of this tile, and have read the one before, whose place is next.
    __syncthreads();
    rows.attend(stages[i % 2], first, p.rule);
    tile.put(stages[(i + 1) % 2]);
  }
  rows.store(p, task);
}

template <typename Element, int kHeadDim>
void launch_prefill(const CudaOp& op, const PrefillParams& params) {
  const auto kernel = attention_prefill_fp8_kernel<Element, kHeadDim>;
  constexpr std::uint32_t kBytes = 2 * sizeof(PrefillStage<Element, kHeadDim>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  launch(op, kernel, {params.num_tiles * params.num_kv_heads, kPortableThreads, kBytes}, params);
}

}  // namespace

void attention_prefill_fp8(const CudaOp& op, const KvLayerCuda& layer,
                           const PrefillParams& params) {
  with_attention_kind(layer, [&](auto element, auto head_dim) {
    launch_prefill<decltype(element), head_dim()>(op, params);
  });
}

}  // namespace inferno::ops::cuda
