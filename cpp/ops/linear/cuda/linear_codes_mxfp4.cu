#include "ops/linear/cuda/linear_codes.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::codes::mxfp4_variants(
    Dtype dtype) {
  return element_variants<Codes<WeightKind::Mxfp4, 2>>(dtype);
}
