#include "ops/linear/cuda/linear_codes.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::int8_variants(
    Dtype dtype) {
  return variants_of<Codes<WeightKind::Int8, kSpanSteps>>(dtype);
}
