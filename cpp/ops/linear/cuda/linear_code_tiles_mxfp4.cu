#include "ops/linear/cuda/linear_code_tiles.cuh"

std::span<const inferno::ops::cuda::boxes::Variant> inferno::ops::cuda::code_tiles::mxfp4_tiles(
    Dtype dtype) {
  return tile_variants<Codes<WeightKind::Mxfp4, 2>>(dtype);
}
