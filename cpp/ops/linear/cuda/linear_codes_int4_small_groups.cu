#include "ops/linear/cuda/linear_integers.cuh"

std::span<const inferno::ops::cuda::boxes::Variant>
inferno::ops::cuda::codes::int4_small_group_variants(Dtype dtype, bool offsets) {
  return offsets ? integer_variants<Codes<WeightKind::Int4, 2, true>>(dtype)
                 : integer_variants<Codes<WeightKind::Int4, 2>>(dtype);
}
