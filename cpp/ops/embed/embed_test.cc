// Goal: rows come out exactly, scaled where that is asked. Method: a packed table against its
// values.
#include "ops/embed/embed.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("embed gives the rows of the tokens") {
  Device device(Isa::Portable, 2);
  Random random(1);
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
    const WeightShape shape{70, 9, dtype};
    const auto values = random.normals(70 * 9);
    const auto source = encode(values, dtype);
    const AlignedBytes packed(packed_bytes(shape));
    pack_rows(device.context(), shape, packed.data(), 0, {source.data(), dtype, 70});
    const std::uint32_t ids[] = {69, 0, 31, 32, 0};
    const PackedWeights table{packed.data(), shape};
    Output out(5 * 9);
    for (const float scale : {1.0F, 45.25F}) {
      embed(device.context(), {table, ids, scale, out.data()});
      for (std::size_t t = 0; t < 5; ++t) {
        for (std::size_t i = 0; i < 9; ++i) {
          REQUIRE(out.span()[t * 9 + i] == rounded(values[ids[t] * 9 + i], dtype) * scale);
        }
      }
    }
    CHECK(out.guards_are_whole());
    const std::uint32_t bad[] = {1, 70};
    CHECK_THROWS_AS(embed(device.context(), {table, bad, 1.0F, out.data()}), std::invalid_argument);
    embed(device.context(), {table, {}, 1.0F, nullptr});
  }
}

}  // namespace inferno::ops::test
