#include "ops/linear/cuda/linear_codes.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::fp8_variants(
    Dtype dtype) {
  return element_variants<Codes<WeightKind::Fp8, kSpanSteps>>(dtype);
}
