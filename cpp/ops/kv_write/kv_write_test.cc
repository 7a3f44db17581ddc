// Goal: every element lands in its place and nothing else changes. Method: poisoned blocks, read
// back.
#include "ops/kv_write/kv_write.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("kv_write puts tokens into their slots and touches no other") {
  Random random(1);
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Fp8}) {
    for (const std::uint32_t block_size : {1U, 5U, 16U}) {
      KvLayer layer{nullptr, nullptr, dtype, 12, block_size, 3, 10};
      const AlignedBytes k(kv_block_bytes(layer) * layer.num_blocks);
      const AlignedBytes v(kv_block_bytes(layer) * layer.num_blocks);
      layer.k = k.data();
      layer.v = v.data();
      std::fill_n(k.data(), k.size(), std::byte{0xff});
      std::fill_n(v.data(), v.size(), std::byte{0xff});
      // q, k and v side by side, as one product gives them.
      const std::size_t stride = 40 + 2 * 30;
      std::vector<std::uint32_t> slots;
      for (std::uint32_t slot = 0; slot < 12 * block_size; slot += 2) slots.push_back(slot);
      random.shuffle(slots);
      const auto qkv = random.normals(slots.size() * stride);
      Device device(Isa::Portable, 2);
      kv_write(device.context(), layer, {qkv.data() + 40, qkv.data() + 70, stride, slots});
      for (std::size_t t = 0; t < slots.size(); ++t) {
        for (std::uint32_t i = 0; i < 30; ++i) {
          const std::size_t key = key_index(layer, slots[t], i / 10, i % 10);
          const std::size_t value = value_index(layer, slots[t], i / 10, i % 10);
          REQUIRE(load_element(layer.k, dtype, key) == rounded(qkv[t * stride + 40 + i], dtype));
          REQUIRE(load_element(layer.v, dtype, value) == rounded(qkv[t * stride + 70 + i], dtype));
        }
      }
      std::size_t num_poisoned = 0;
      const std::size_t elements = k.size() / dtype_bytes(dtype);
      for (std::size_t i = 0; i < elements; ++i) {
        if (std::isnan(load_element(layer.k, dtype, i))) ++num_poisoned;
        if (std::isnan(load_element(layer.v, dtype, i))) ++num_poisoned;
      }
      CHECK(num_poisoned == 2 * (elements - slots.size() * 30));
    }
  }
}

TEST_CASE("kv_write divides what becomes fp8 by its scale, and the largest number is the end") {
  KvLayer layer{nullptr, nullptr, Dtype::Fp8, 1, 1, 1, 4, 0.5F, 0.01F};
  const AlignedBytes k(kv_block_bytes(layer));
  const AlignedBytes v(kv_block_bytes(layer));
  layer.k = k.data();
  layer.v = v.data();
  REQUIRE(k.size() == 4);
  const std::vector<float> keys = {1.0F, -0.51F, 1e6F, 0.0F};
  const std::vector<float> values = {1.0F, -4.48F, -5.0F, 1e-5F};
  const std::uint32_t slots[] = {0};
  Device device(Isa::Portable, 1);
  kv_write(device.context(), layer, {keys.data(), values.data(), 4, slots});
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(load_element(layer.k, Dtype::Fp8, i) == rounded(keys[i] / 0.5F, Dtype::Fp8));
    CHECK(load_element(layer.v, Dtype::Fp8, i) == rounded(values[i] / 0.01F, Dtype::Fp8));
  }
  CHECK(load_element(layer.k, Dtype::Fp8, 2) == kE4m3Max);
  CHECK(load_element(layer.v, Dtype::Fp8, 2) == -kE4m3Max);
}

TEST_CASE("kv_write refuses a slot beyond the blocks and writes nothing") {
  KvLayer layer{nullptr, nullptr, Dtype::F32, 2, 4, 1, 2};
  const AlignedBytes k(kv_block_bytes(layer) * 2);
  const AlignedBytes v(kv_block_bytes(layer) * 2);
  std::fill_n(k.data(), k.size(), std::byte{0});
  layer.k = k.data();
  layer.v = v.data();
  const std::vector<float> values(4, 1.0F);
  const std::uint32_t slots[] = {0, 8};
  Device device(Isa::Portable, 1);
  CHECK_THROWS_AS(kv_write(device.context(), layer, {values.data(), values.data(), 2, slots}),
                  std::invalid_argument);
  CHECK(load_element(layer.k, Dtype::F32, 0) == 0.0F);
}

}  // namespace inferno::ops::test
