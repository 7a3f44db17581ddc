// Goal: a code stands for the number that its format's definition says. Method: every code of e2m1
// against the definition (e4m3's are in ops/base/e4m3_test.cc).
#include "ops/linear/weight_format.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {
TEST_CASE("codes of e2m1 are the numbers of its definition") {
  const float magnitudes[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (std::uint8_t code = 0; code < 16; ++code) {
    const float magnitude = magnitudes[code % 8];
    CHECK(weight_value(WeightKind::Mxfp4, code) == (code < 8 ? magnitude : -magnitude));
  }
}

TEST_CASE("groups of a row are counted with the last, shorter one") {
  CHECK(num_groups(WeightKind::Int8, 300) == 1);
  CHECK(num_groups({WeightKind::Int4, 128}, 256) == 2);
  CHECK(num_groups({WeightKind::Int4, 128}, 257) == 3);
}

}  // namespace inferno::ops::test
