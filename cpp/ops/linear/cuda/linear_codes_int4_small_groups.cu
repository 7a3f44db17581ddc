#include "ops/linear/cuda/linear_codes.cuh"

std::span<const inferno::ops::cuda::boxes::Variant>
inferno::ops::cuda::codes::int4_small_group_variants(Dtype dtype) {
  return variants_of<Codes<WeightKind::Int4, 2>>(dtype);
}
