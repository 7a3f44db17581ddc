// Flash attention for every head_dim on every device: mma.sync, keys and values through shared
// memory by cp.async, two stages.
#include <bit>

#include "ops/attention/cuda/attention_kinds.cuh"
#include "ops/attention/cuda/attention_prefill_rows.cuh"

namespace inferno::ops::cuda {
namespace {

// Grid: tiles * KV heads.
template <typename Element, int kHeadDim, bool kPlain>
__global__ void __launch_bounds__(kPortableThreads, 1)
    attention_prefill_kernel(const __grid_constant__ PrefillParams p) {
  using Stage = PrefillStage<Element, kHeadDim>;
  extern __shared__ uint4 shared[];
  auto* stages = reinterpret_cast<Stage*>(shared);
  let_next_start();
  const PrefillTask task = prefill_task(p, blockIdx.x);
  wait_for_previous();
  std::uint32_t first = task.first_key<kPlain>(p.rule) / Stage::kKeys * Stage::kKeys;
  stages[0].template load<kPlain>(p, task, first);
  PrefillRows<Element, kHeadDim, kPlain> rows(p, task);
  for (std::uint32_t i = 0; first < task.num_keys; first += Stage::kKeys, ++i) {
    // Beyond the end this is all zeros, and nobody reads it.
    stages[(i + 1) % 2].template load<kPlain>(p, task, first + Stage::kKeys);
    wait_for_copies<1>();
    __syncthreads();
    rows.attend(stages[i % 2], first, p.rule);
    __syncthreads();
  }
  wait_for_copies<0>();
  rows.store(p, task);
}

template <typename Element, int kHeadDim>
void launch_prefill(const CudaOp& op, const PrefillParams& params) {
  const auto kernel = params.rule.is_plain() ? attention_prefill_kernel<Element, kHeadDim, true>
                                             : attention_prefill_kernel<Element, kHeadDim, false>;
  constexpr std::uint32_t kBytes = 2 * sizeof(PrefillStage<Element, kHeadDim>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  launch(op, kernel, {params.num_tiles * params.num_kv_heads, kPortableThreads, kBytes}, params);
}

}  // namespace

void attention_prefill(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args) {
  const PrefillParams params{
      .qkv = args.qkv,
      .k = layer.k,
      .v = layer.v,
      .out = args.out,
      .cu_query_lens = args.cu_query_lens,
      .context_lens = args.context_lens,
      .block_tables = args.block_tables,
      .tiles = args.tiles,
      .block_table_stride = args.block_table_stride,
      .block_shift = static_cast<std::uint32_t>(std::countr_zero(layer.block_size)),
      .num_blocks = layer.num_blocks,
      .num_heads = args.num_heads,
      .num_kv_heads = layer.num_kv_heads,
      .num_tiles = args.num_tiles,
      .v_scale = layer.v_scale,
      .rule = score_rule(args.rule, layer.k_scale),
  };
  if (!args.reference && has_attention_prefill_sm90(op, layer)) {
    return layer.fp8 ? attention_prefill_sm90_fp8(op, layer, params)
                     : attention_prefill_sm90(op, layer, params);
  }
  if (layer.fp8) return attention_prefill_fp8(op, layer, params);
  with_attention_kind(layer, [&](auto element, auto head_dim) {
    launch_prefill<decltype(element), head_dim()>(op, params);
  });
}

}  // namespace inferno::ops::cuda
