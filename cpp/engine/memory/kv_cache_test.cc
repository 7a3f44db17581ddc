// Goal: blocks take what a number of their type takes, and each layer has its own place. Method:
// the same decoder with KV of 4, 2 and 1 bytes in one pool.
#include "engine/memory/kv_cache.h"

#include <doctest/doctest.h>

#include "engine/testing/test_model.h"

namespace inferno::engine {
namespace {

DecoderSpec spec_with(ops::Dtype kv) {
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  spec.kv = kv;
  spec.layers[1].attention.k_scale = 0.25F;
  spec.layers[1].attention.v_scale = 0.5F;
  return spec;
}

TEST_CASE("a block in fp8 takes a quarter of one in float, and has its layer's scales") {
  const std::uint32_t block_size = test::small_limits().block_size;
  const std::uint64_t floats = KvCache::bytes_per_block(spec_with(ops::Dtype::F32), block_size);
  CHECK(KvCache::bytes_per_block(spec_with(ops::Dtype::BF16), block_size) * 2 == floats);
  const DecoderSpec spec = spec_with(ops::Dtype::Fp8);
  CHECK(KvCache::bytes_per_block(spec, block_size) * 4 == floats);

  MemoryPool pool(1 << 20);
  ModelLimits limits = test::small_limits();
  limits.kv_bytes = 1 << 19;
  const KvCache kv(pool, spec, limits);
  CHECK(kv.bytes() <= limits.kv_bytes);
  CHECK(kv.num_blocks() + 64 >= limits.kv_bytes / KvCache::bytes_per_block(spec, block_size));
  for (std::uint32_t i = 0; i < spec.num_layers(); ++i) {
    const ops::KvLayer& layer = kv.layer(i);
    CHECK(layer.dtype == ops::Dtype::Fp8);
    CHECK(layer.num_blocks == kv.num_blocks());
    CHECK(layer.v >= layer.k + std::size_t{kv.num_blocks()} * ops::kv_block_bytes(layer));
    CHECK(layer.k_scale == (i == 1 ? 0.25F : 1.0F));
    CHECK(layer.v_scale == (i == 1 ? 0.5F : 1.0F));
  }
}

TEST_CASE("what is not in fp8 has no scales") {
  MemoryPool pool(1 << 20);
  ModelLimits limits = test::small_limits();
  limits.kv_bytes = 1 << 19;
  const KvCache kv(pool, spec_with(ops::Dtype::BF16), limits);
  CHECK(kv.layer(1).k_scale == 1.0F);
  CHECK(kv.layer(1).v_scale == 1.0F);
}

}  // namespace
}  // namespace inferno::engine
