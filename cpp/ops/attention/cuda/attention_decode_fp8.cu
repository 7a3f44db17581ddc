// attention_decode over keys and values in e4m3.
#include "ops/attention/cuda/attention_decode_kernel.cuh"
#include "ops/attention/cuda/attention_kinds.cuh"

namespace inferno::ops::cuda {
namespace {

// Half the bytes for a tile: the many warps of a shared sequence fit into every card's
// multiprocessors.
template <typename Kind>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  constexpr int kFewWarps = Kind::kHeadDim > 128 ? 2 : 4;
  const std::uint32_t units = params.num_kv_heads * params.units_per_kv_head;
  const std::uint32_t shares = shares_of(op, params, num_decodes);
  if (shares == 0) {
    return launch_decode<Kind, kFewWarps, false>(op, params, dim3(1, units, num_decodes));
  }
  launch_decode<Kind, 2 * kFewWarps, true>(op, params, dim3(shares, units, num_decodes));
}

template <typename Element, int kHeadDim>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes) {
  using Plain = DecodeKind<Element, E4m3, kHeadDim, true>;
  using Ruled = DecodeKind<Element, E4m3, kHeadDim, false>;
  params.rule.is_plain() ? launch_decode<Plain>(op, params, num_decodes)
                         : launch_decode<Ruled>(op, params, num_decodes);
}

}  // namespace

void attention_decode_fp8(const CudaOp& op, const KvLayerCuda& layer, const DecodeParams& params,
                          std::uint32_t num_decodes) {
  with_attention_kind(layer, [&](auto element, auto head_dim) {
    launch_decode<decltype(element), head_dim()>(op, params, num_decodes);
  });
}

}  // namespace inferno::ops::cuda
