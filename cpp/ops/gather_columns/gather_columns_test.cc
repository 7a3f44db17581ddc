// Goal: every column comes to its place, in every row. Method: a shuffled order, looked up again.
#include "ops/gather_columns/gather_columns.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("columns come in their order, in every row") {
  Random random(1);
  for (const auto& [num_tokens, num_columns] :
       {std::pair{1U, 1U}, {3U, 29U}, {17U, 512U}, {2U, 20000U}}) {
    CAPTURE(num_columns);
    std::vector<std::uint32_t> order(num_columns);
    std::iota(order.begin(), order.end(), 0U);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    const auto x = random.normals(std::size_t{num_tokens} * num_columns);
    Device device(Isa::Portable, 3);
    Output out(x.size());
    gather_columns(device.context(), {x.data(), num_tokens, num_columns, order.data(), out.data()});
    CHECK(out.guards_are_whole());
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(out.span()[i] == x[i / num_columns * num_columns + order[i % num_columns]]);
    }
  }
}

}  // namespace inferno::ops::test
