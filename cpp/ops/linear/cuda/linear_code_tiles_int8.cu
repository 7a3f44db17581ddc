#include "ops/linear/cuda/linear_code_tiles.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::code_tiles::int8_tiles(
    Dtype dtype, bool offsets) {
  return offsets ? tile_variants<Codes<WeightKind::Int8, kSpanSteps, true>>(dtype)
                 : tile_variants<Codes<WeightKind::Int8, kSpanSteps>>(dtype);
}
