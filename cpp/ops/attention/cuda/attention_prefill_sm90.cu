// Flash attention on wgmma, for head_dim 64, 96, 128 and 256: Shah et al., "FlashAttention-3",
// 2024.
//
// One block to a multiprocessor takes tiles one after another. Of its three warpgroups one only
// loads: a warp gathers keys and values, 16 positions at a time, through the tensor copy engine
// into two stages, the others the next tile's queries. The two others have 64 rows each, the scores
// and sums in registers; while one takes exponentials, the tensor cores multiply for the other, and
// each one's next scores are on their way, too.
//
// As in the portable kernel a row's bits do not depend on what else is in its block.
#include <algorithm>

#include "ops/attention/cuda/attention_kinds.cuh"
#include "ops/attention/cuda/attention_prefill_groups.cuh"
#include "ops/attention/cuda/attention_prefill_load.cuh"
#include "ops/cuda/tensor_map.h"

namespace inferno::ops::cuda {
namespace {

// Grid: any.
template <typename Element, int kHeadDim, bool kPlain>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    attention_prefill_sm90_kernel(const __grid_constant__ PrefillParams p,
                                  const __grid_constant__ KvMaps maps) {
#ifdef INFERNO_SM90A
  extern __shared__ std::uint8_t dynamic_shared[];
  auto& shared = *reinterpret_cast<PrefillShared<Element, kHeadDim>*>(
      dynamic_shared + (0U - shared_address(dynamic_shared)) % 1024);
  let_next_start();
  if (threadIdx.x == 0) shared.init(kQueryThreads, 1);
  const Schedule schedule(p.num_tiles * p.num_kv_heads);
  __syncthreads();
  // What the kernel before writes, the two loaders wait for; the groups wait for the loaders.
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < 32) {
      Copier<Element, kHeadDim, kPlain>(p, maps, shared).run(schedule);
    } else {
      load_queries<Element, kHeadDim>(p, schedule, shared, threadIdx.x - 32);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    RowGroup<Element, kHeadDim, kPlain>(p, shared).run(schedule);
  }
#else
  __trap();  // built for other cards than the one it was chosen for
#endif
}

// Rows are the positions of a KV head; 64 elements of kCopiedKeys rows in a box.
CUtensorMap kv_map(const KvLayerCuda& layer, const void* data) {
  const std::uint32_t num_rows = layer.num_blocks * layer.num_kv_heads * layer.block_size;
  return box_map({data, num_rows, layer.head_dim, layer.dtype}, kCopiedKeys);
}

template <typename Element, int kHeadDim>
void launch_sm90(const CudaOp& op, const KvLayerCuda& layer, const PrefillParams& params) {
  const auto kernel = params.rule.is_plain()
                          ? attention_prefill_sm90_kernel<Element, kHeadDim, true>
                          : attention_prefill_sm90_kernel<Element, kHeadDim, false>;
  constexpr std::uint32_t kBytes = PrefillShape<kHeadDim>::kSharedBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  const std::uint32_t grid = std::min(op.num_sms, params.num_tiles * params.num_kv_heads);
  launch(op, kernel, {grid, kPrefillThreads, kBytes}, params,
         KvMaps{kv_map(layer, layer.k), kv_map(layer, layer.v)});
}

}  // namespace

bool has_attention_prefill_sm90(const CudaOp& op, const KvLayerCuda& layer) {
  return op.dependent_launch && layer.head_dim >= 64;
}

void attention_prefill_sm90(const CudaOp& op, const KvLayerCuda& layer,
                            const PrefillParams& params) {
  with_attention_kind<64>(layer, [&](auto element, auto head_dim) {
    launch_sm90<decltype(element), head_dim()>(op, layer, params);
  });
}

}  // namespace inferno::ops::cuda
