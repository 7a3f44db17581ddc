#include "ops/linear/cuda/linear_code_tiles.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::code_tiles::fp8_tiles(
    Dtype dtype) {
  return tile_variants<Codes<WeightKind::Fp8, kSpanSteps>>(dtype);
}
