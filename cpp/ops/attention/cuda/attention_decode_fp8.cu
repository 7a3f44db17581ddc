// attention_decode over keys and values in e4m3.
#include "ops/attention/cuda/attention_decode_kernel.cuh"

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

template <typename Element>
void launch_decode(const CudaOp& op, const DecodeParams& params, std::uint32_t num_decodes,
                   std::uint32_t head_dim) {
  switch (head_dim) {
    case 32:
      return launch_decode<Element, 32>(op, params, num_decodes);
    case 64:
      return launch_decode<Element, 64>(op, params, num_decodes);
    case 96:
      return launch_decode<Element, 96>(op, params, num_decodes);
    case 128:
      return launch_decode<Element, 128>(op, params, num_decodes);
    default:
      return launch_decode<Element, 256>(op, params, num_decodes);
  }
}

}  // namespace

void attention_decode_fp8(const CudaOp& op, const KvLayerCuda& layer, const DecodeParams& params,
                          std::uint32_t num_decodes) {
  if (layer.dtype == Dtype::BF16) {
    launch_decode<__nv_bfloat16>(op, params, num_decodes, layer.head_dim);
  } else {
    launch_decode<__half>(op, params, num_decodes, layer.head_dim);
  }
}

}  // namespace inferno::ops::cuda
