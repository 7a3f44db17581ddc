// Goal: every column comes to its place, in every row. Method: a shuffled order, looked up again;
// guards.
#include "ops/gather_columns/gather_columns_cuda.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

TEST_CASE("gather_columns_cuda puts every column in its place") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t num_columns : {8U, 104U, 4096U, 14336U}) {
    CAPTURE(num_columns);
    const std::uint32_t tokens = random.integer(1, 33);
    std::vector<std::uint32_t> order(num_columns);
    std::iota(order.begin(), order.end(), 0U);
    std::shuffle(order.begin(), order.end(), std::mt19937(fresh_seed()));
    const auto x = to_elements(random.normals(std::size_t{tokens} * num_columns), Dtype::BF16);
    const DeviceBuffer<std::uint16_t> x_cuda(x);
    const DeviceBuffer<std::uint32_t> order_cuda(order);
    const DeviceBuffer<std::uint16_t> out(std::vector<std::uint16_t>(x.size()));
    gather_columns_cuda(device.op(), {.x = x_cuda.data(),
                                      .num_tokens = tokens,
                                      .num_columns = num_columns,
                                      .order = order_cuda.data(),
                                      .out = out.data()});
    CHECK(out.guards_are_whole());
    const auto got = out.to_host();
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(got[i] == x[i / num_columns * num_columns + order[i % num_columns]]);
    }
  }
}

TEST_CASE("gather_columns_cuda refuses widths that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(gather_columns_cuda(op, {.num_tokens = 1, .num_columns = 12}),
                  std::invalid_argument);
  gather_columns_cuda(op, {.num_columns = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
