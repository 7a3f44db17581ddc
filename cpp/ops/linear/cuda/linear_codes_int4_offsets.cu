#include "ops/linear/cuda/linear_integers.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::int4_offset_variants(
    Dtype dtype) {
  return integer_variants<Codes<WeightKind::Int4, kSpanSteps, true>>(dtype);
}
