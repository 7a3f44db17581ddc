// Goal: a plausible figure or a refusal. Method: whatever this machine has; no limits on speed.
#include "ops/base/product_rate.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("the rate of products is measured for all that an instruction set multiplies") {
  for (const Isa isa : kIsas) {
    if (isa == Isa::Portable || !isa_available(isa)) continue;
    for (const Factors factors : {Factors::Floats, Factors::Bf16, Factors::Bytes}) {
      const double rate = measure_product_rate(isa, factors, 1);
      CHECK(rate > 1e6);
      CHECK(std::isfinite(rate));
    }
  }
}

TEST_CASE("nothing to multiply with is refused") {
  CHECK_THROWS_AS(measure_product_rate(Isa::Portable, Factors::Floats, 1), std::invalid_argument);
  CHECK_THROWS_AS(measure_product_rate(best_isa(), Factors::Floats, 0), std::invalid_argument);
}

}  // namespace inferno::ops::test
