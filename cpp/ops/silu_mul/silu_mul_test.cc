// Goal: the activation is right everywhere on the axis. Method: float64, random and extreme values.
#include "ops/silu_mul/silu_mul.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("silu_mul agrees with float64") {
  for_each_isa([](Isa isa) {
    Device device(isa, 2);
    Random random(1);
    for (const std::uint32_t size : {1U, 7U, 16U, 29U, 8192U, 8200U}) {
      const std::uint32_t tokens = 3;
      auto gate_up = random.normals(std::size_t{tokens} * 2 * size);
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t i = 0; i < size; ++i) gate_up[t * 2 * size + i] *= 8.0F;
      }
      Output out(std::size_t{tokens} * size);
      silu_mul(device.context(), {gate_up.data(), tokens, size, out.data()});
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t i = 0; i < size; ++i) {
          const double gate = gate_up[t * 2 * size + i];
          const double expected = gate / (1.0 + std::exp(-gate)) * gate_up[(t * 2 + 1) * size + i];
          REQUIRE(std::abs(out.span()[t * size + i] - expected) <= 1e-6 * std::abs(expected));
        }
      }
      CHECK(out.guards_are_whole());
    }
  });
}

TEST_CASE("silu_mul is finite far out and keeps a NaN") {
  for_each_isa([](Isa isa) {
    Device device(isa, 1);
    const std::vector<float> gate_up = {-1e30F, -200.0F, 0.0F, 200.0F, 1e30F, kPoison,
                                        1.0F,   1.0F,    1.0F, 1.0F,   1.0F,  1.0F};
    std::vector<float> out(6);
    silu_mul(device.context(), {gate_up.data(), 1, 6, out.data()});
    CHECK(std::abs(out[1]) < 1e-30F);
    CHECK(out[2] == 0.0F);
    CHECK(out[3] == 200.0F);
    CHECK(out[4] == 1e30F);
    CHECK(std::isnan(out[5]));
    CHECK(std::isfinite(out[0]));
  });
}

}  // namespace inferno::ops::test
