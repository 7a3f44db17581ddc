#include "ops/linear/cuda/linear_integers.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::int8_variants(
    Dtype dtype, bool offsets) {
  return offsets ? integer_variants<Codes<WeightKind::Int8, kSpanSteps, true>>(dtype)
                 : integer_variants<Codes<WeightKind::Int8, kSpanSteps>>(dtype);
}
