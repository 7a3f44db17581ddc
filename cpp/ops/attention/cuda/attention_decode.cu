// One query token per sequence: K and V are read once at the memory's pace
// (attention_decode_kernel.cuh).
#include "ops/attention/cuda/attention_decode.h"
#include "ops/attention/cuda/attention_decode_kernel.cuh"
#include "ops/attention/cuda/attention_kinds.cuh"

namespace inferno::ops::cuda {
namespace {

std::uint32_t max_shared_bytes() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::uint32_t>(bytes);
}

template <typename Kind>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  constexpr int kHeadDim = Kind::kHeadDim;
  const std::uint32_t units = params.num_kv_heads * params.units_per_kv_head;
  constexpr int kFewWarps = kHeadDim > 128 ? 2 : 4;
  constexpr int kManyWarps = 2 * kFewWarps;
  // Enough blocks: small ones, of which several fit into a multiprocessor and hide each other's
  // beginning and end. Few: large ones, and sequences cut into shares.
  const std::uint32_t shares = shares_of(op, params, num_decodes);
  if (shares == 0) {
    const dim3 grid(1, units, num_decodes);
    if constexpr (!Kind::kPlain && kHeadDim <= 64) {
      // A window of 128 positions is nine tiles: as much time goes into a block's beginning and end
      // as into those. The less memory it takes, the more others hide it.
      constexpr std::uint32_t kAtOnce = 8;  // blocks of a multiprocessor
      if (units * num_decodes > kAtOnce * op.num_sms) {
        return launch_decode<Kind, 3, false, 2>(op, params, grid);
      }
      return launch_decode<Kind, 5, false, 1>(op, params, grid);
    }
    return launch_decode<Kind, kFewWarps, false>(op, params, grid);
  }
  const dim3 grid(shares, units, num_decodes);
  // Less than this only before sm_90, but for sm_80.
  constexpr std::uint32_t kGatherBytes = 8 * 1024;
  if (kSharedBytes<Kind, kManyWarps, true> + kGatherBytes > max_shared_bytes()) {
    return launch_decode<Kind, kFewWarps, true>(op, params, grid);
  }
  launch_decode<Kind, kManyWarps, true>(op, params, grid);
}

template <typename Element, int kHeadDim>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  using Plain = DecodeKind<Element, Element, kHeadDim, true>;
  using Ruled = DecodeKind<Element, Element, kHeadDim, false>;
  params.rule.is_plain() ? launch_decode<Plain>(op, params, num_decodes)
                         : launch_decode<Ruled>(op, params, num_decodes);
}

constexpr std::size_t kArrivalBytes = kMaxPartials * sizeof(std::uint32_t);

}  // namespace

std::size_t attention_decode_workspace_bytes(std::uint32_t head_dim) {
  return kArrivalBytes + std::size_t{kMaxPartials} * kDecodeHeads * (head_dim + 2) * sizeof(float);
}

void attention_decode(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args) {
  const std::uint32_t group = args.num_heads / layer.num_kv_heads;
  auto* workspace = static_cast<std::byte*>(args.workspace);
  const DecodeParams params{
      .qkv = args.qkv,
      .cos_sin = args.cos_sin,
      .k = layer.k,
      .v = layer.v,
      .out = args.out,
      .cu_query_lens = args.cu_query_lens,
      .context_lens = args.context_lens,
      .block_tables = args.block_tables,
      .decode_seqs = args.decode_seqs,
      .block_table_stride = args.block_table_stride,
      .block_size = layer.block_size,
      .num_heads = args.num_heads,
      .num_kv_heads = layer.num_kv_heads,
      .units_per_kv_head = (group + kDecodeHeads - 1) / kDecodeHeads,
      .rule = score_rule(args.rule, layer.k_scale),
      .k_scale = layer.k_scale,
      .v_scale = layer.v_scale,
      .arrivals = reinterpret_cast<std::uint32_t*>(workspace),
      .partials = reinterpret_cast<float*>(workspace + kArrivalBytes),
  };
  if (layer.fp8) return attention_decode_fp8(op, layer, params, args.num_decodes);
  with_attention_kind(layer, [&](auto element, auto head_dim) {
    launch_decode<decltype(element), head_dim()>(op, params, args.num_decodes);
  });
}

}  // namespace inferno::ops::cuda
