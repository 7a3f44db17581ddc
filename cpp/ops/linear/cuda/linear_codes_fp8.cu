#include "ops/linear/cuda/linear_codes.cuh"
#include "ops/linear/cuda/linear_split_codes.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::fp8_variants(
    Dtype dtype) {
  return element_variants<Codes<WeightKind::Fp8, kSpanSteps>>(dtype);
}

namespace inferno::ops::cuda::codes {
namespace {

// The last is for the widest matrices.
template <typename Element>
constexpr Variant kSplitVariants[] = {kSplitVariant<Element, 8, 14>, kSplitVariant<Element, 16, 14>,
                                      kSplitVariant<Element, 32, 8>, kSplitVariant<Element, 32, 14>,
                                      kSplitVariant<Element, 8, 32>};

}  // namespace

std::span<const Variant> split_variants(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kSplitVariants<__nv_bfloat16>)
                              : std::span(kSplitVariants<__half>);
}

}  // namespace inferno::ops::cuda::codes
