// Goal: weights made on the device are those made on the host. Method: NormalTable::fill row by
// row, for widths of every alignment.
#include "ops/random_fill/random_fill_cuda.h"

#include <stdexcept>

#include "engine/weights/random_weights.h"
#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"

namespace inferno::ops::cuda::test {
namespace {

struct Shape {
  std::uint32_t num_rows;
  std::uint32_t num_columns;
};

TEST_CASE("random_fill_cuda has the bits of NormalTable::fill") {
  TestDevice device;
  const std::uint32_t seed = fresh_seed();
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    const engine::NormalTable normal(0.02F, dtype);
    const DeviceBuffer<std::byte> table(normal.values());
    for (const Shape shape :
         {Shape{1, 1}, {3, 2}, {5, 7}, {2, 12}, {9, 2048}, {3, 4099}, {2000, 64}, {70, 14336}}) {
      CAPTURE(shape.num_columns);
      const std::uint64_t key = engine::tensor_key(seed, shape.num_columns);
      const std::size_t size = std::size_t{shape.num_rows} * shape.num_columns;
      const std::size_t row_bytes = shape.num_columns * dtype_bytes(dtype);
      std::vector<std::byte> expected(size * dtype_bytes(dtype));
      for (std::uint32_t row = 0; row < shape.num_rows; ++row) {
        normal.fill(key, row * engine::random_row_stride(shape.num_columns),
                    std::span(expected).subspan(row * row_bytes, row_bytes));
      }
      const DeviceBuffer<std::byte> out(expected.size());
      random_fill_cuda(device.op(),
                       {table.data(), key, shape.num_rows, shape.num_columns, dtype, out.data()});
      CHECK(out.to_host() == expected);
      CHECK(out.guards_are_whole());
    }
  }
}

TEST_CASE("random_fill_cuda refuses floats, and fills nothing with nothing") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(random_fill_cuda(op, {.num_rows = 1, .num_columns = 1, .dtype = Dtype::F32}),
                  std::invalid_argument);
  random_fill_cuda(op, {});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
