// attention_prefill_sm90 over keys and values in e4m3: the warpgroup that loads widens them on
// their way into shared memory, where wgmma finds them as it finds elements.
#include <algorithm>

#include "ops/attention/cuda/attention_kinds.cuh"
#include "ops/attention/cuda/attention_prefill_groups.cuh"
#include "ops/attention/cuda/attention_prefill_load.cuh"
#include "ops/cuda/e4m3.cuh"

namespace inferno::ops::cuda {
namespace {

#ifdef INFERNO_SM90A

constexpr int kLoadThreads = 128;

// One thread of the warpgroup that loads. Its share of the next keys or values is on its way in
// registers while the row groups still use the stage that it will go to.
template <typename Element, int kHeadDim>
class WideningLoader {
  using Shared = PrefillShared<Element, kHeadDim>;
  using Kv = typename Shared::Kv;
  using Pieces = KeyPieces<kHeadDim, false>;
  static constexpr std::uint32_t kChunks = kHeadDim / 16;  // of 16 codes
  static constexpr int kShare = Pieces::kKeyTile * kChunks / kLoadThreads;
  static_assert(Pieces::kKeyTile * kChunks % kLoadThreads == 0);

 public:
  __device__ WideningLoader(const PrefillParams& p, Shared& shared)
      : p_(p), shared_(shared), pieces_(p) {}

  __device__ void run(const Schedule& schedule) {
    for (std::uint32_t round = 0; schedule.has(round); ++round) {
      pieces_.start(prefill_task(p_, schedule.task(round)));
      if (round == 0) wait_for_previous();
      const PrefillTask& task = pieces_.task();
      fetch(p_.k, pieces_.first_tile());
      load_queries_of<kLoadThreads>(p_, task, shared_, round, threadIdx.x);
      for (std::uint32_t i = pieces_.first_tile(); i * Pieces::kKeyTile < task.num_keys; ++i) {
        const std::uint32_t stage = next_.stage();
        wait_barrier(&shared_.k_empty[stage], next_.parity() ^ 1);
        put(shared_.k[stage], &shared_.k_full[stage]);
        fetch(p_.v, i);
        wait_barrier(&shared_.v_empty[stage], next_.parity() ^ 1);
        put(shared_.v[stage], &shared_.v_full[stage]);
        ++next_.count;
        pieces_.reach(i + 1);
        fetch(p_.k, i + 1);
      }
    }
  }

 private:
  // Positions that no row of the task sees become zeros.
  __device__ void fetch(const void* codes, std::uint32_t tile) {
    const PrefillTask& task = pieces_.task();
    const std::uint32_t first_key = task.first_key<false>(p_.rule);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const std::uint32_t chunk = threadIdx.x + i * kLoadThreads;
      const std::uint32_t row = chunk / kChunks;
      const std::uint32_t position = tile * Pieces::kKeyTile + row;
      const std::size_t source =
          std::size_t{pieces_.row_of(tile, row / kCopiedKeys)} + row % kCopiedKeys;
      const bool valid = position >= first_key && position < task.num_keys;
      codes_[i] = valid ? static_cast<const uint4*>(codes)[source * kChunks + chunk % kChunks]
                        : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void put(Kv& target, std::uint64_t* full) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const std::uint32_t chunk = threadIdx.x + i * kLoadThreads;
      store(target.at(chunk / kChunks, chunk % kChunks * 2), codes_[i].x, codes_[i].y);
      store(target.at(chunk / kChunks, chunk % kChunks * 2 + 1), codes_[i].z, codes_[i].w);
    }
    fence_async_proxy();
    arrive(full);
  }

  __device__ static void store(uint4* to, std::uint32_t first, std::uint32_t second) {
    const uint2 low = widened<Element>(first);
    const uint2 high = widened<Element>(second);
    *to = make_uint4(low.x, low.y, high.x, high.y);
  }

  const PrefillParams& p_;
  Shared& shared_;
  Pieces pieces_;
  RingPlace<kLoadStages> next_;
  uint4 codes_[kShare];
};

#endif  // INFERNO_SM90A

// Grid: any.
template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    attention_prefill_sm90_fp8_kernel(const __grid_constant__ PrefillParams p) {
#ifdef INFERNO_SM90A
  extern __shared__ std::uint8_t dynamic_shared[];
  auto& shared = *reinterpret_cast<PrefillShared<Element, kHeadDim>*>(
      dynamic_shared + (0U - shared_address(dynamic_shared)) % 1024);
  let_next_start();
  if (threadIdx.x == 0) shared.init(kLoadThreads, kLoadThreads);
  const Schedule schedule(p.num_tiles * p.num_kv_heads);
  __syncthreads();
  if (threadIdx.x < kLoadThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    WideningLoader<Element, kHeadDim>(p, shared).run(schedule);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    RowGroup<Element, kHeadDim, false>(p, shared).run(schedule);
  }
#else
  __trap();  // built for other cards than the one it was chosen for
#endif
}

template <typename Element, int kHeadDim>
void launch_sm90(const CudaOp& op, const PrefillParams& params) {
  const auto kernel = attention_prefill_sm90_fp8_kernel<Element, kHeadDim>;
  constexpr std::uint32_t kBytes = PrefillShape<kHeadDim>::kSharedBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  const std::uint32_t grid = std::min(op.num_sms, params.num_tiles * params.num_kv_heads);
  launch(op, kernel, {grid, kPrefillThreads, kBytes}, params);
}

}  // namespace

void attention_prefill_sm90_fp8(const CudaOp& op, const KvLayerCuda& layer,
                                const PrefillParams& params) {
  with_attention_kind<64>(layer, [&](auto element, auto head_dim) {
    launch_sm90<decltype(element), head_dim()>(op, params);
  });
}

}  // namespace inferno::ops::cuda
