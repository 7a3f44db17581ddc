// Goal: a plausible figure or a refusal. Method: a small buffer; no limits on speed.
#include "ops/base/bandwidth.h"

#include <stdexcept>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("the read bandwidth is measured") {
  const double bandwidth = measure_read_bandwidth(std::size_t{8} << 20, 2, 2);
  CHECK(bandwidth > 1e6);
  CHECK(std::isfinite(bandwidth));
}

TEST_CASE("nothing to measure is refused") {
  CHECK_THROWS_AS(measure_read_bandwidth(100, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(measure_read_bandwidth(std::size_t{8} << 20, 0, 1), std::invalid_argument);
  CHECK_THROWS_AS(measure_read_bandwidth(std::size_t{8} << 20, 1, 0), std::invalid_argument);
}

}  // namespace inferno::ops::test
