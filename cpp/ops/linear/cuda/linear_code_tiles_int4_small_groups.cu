#include "ops/linear/cuda/linear_code_tiles.cuh"

std::span<const inferno::ops::cuda::boxes::Variant>
inferno::ops::cuda::code_tiles::int4_small_group_tiles(Dtype dtype, bool offsets) {
  return offsets ? tile_variants<Codes<WeightKind::Int4, 2, true>>(dtype)
                 : tile_variants<Codes<WeightKind::Int4, 2>>(dtype);
}
