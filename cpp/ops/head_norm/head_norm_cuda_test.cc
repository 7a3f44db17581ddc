// Goal: spans inside of rows are normalised in place and nothing else is touched. Method: float64
// on the same rounded inputs, within one rounding of an element; everything outside of the spans
// and the guards must keep its bits; the same rows alone and in a batch.
#include "ops/head_norm/head_norm_cuda.h"

#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

struct Spans {
  std::uint32_t num_heads;
  std::uint32_t width;
  std::uint32_t before;  // elements of a row
  std::uint32_t after;

  std::size_t size() const { return std::size_t{num_heads} * width; }
  std::size_t stride() const { return before + size() + after; }
};

void check_head_norm(const TestDevice& device, Random& random, const Spans& spans, Dtype dtype) {
  CAPTURE(spans.num_heads);
  CAPTURE(spans.width);
  const std::uint32_t tokens = random.integer(1, 20);
  const auto rows = to_elements(random.normals(tokens * spans.stride()), dtype);
  const auto values = to_floats(rows, dtype);
  for (const Norm kind : {Norm::Weighted, Norm::Unweighted}) {
    const TestNorm norm(random, kind, spans.width);
    const DeviceBuffer<std::uint16_t> x(rows);
    head_norm_cuda(device.op(), {.x = x.data() + spans.before,
                                 .row_stride = spans.stride(),
                                 .weight = norm.device().weight,
                                 .eps = kNormEps,
                                 .num_tokens = tokens,
                                 .num_heads = spans.num_heads,
                                 .width = spans.width,
                                 .dtype = dtype});
    const auto got = x.to_host();
    const auto got_values = to_floats(got, dtype);
    for (std::size_t row = 0; row < rows.size(); row += spans.stride()) {
      const std::size_t begin = row + spans.before;
      const auto expected = norm(std::span(values).subspan(begin, spans.size()));
      for (std::size_t i = 0; i < spans.stride(); ++i) {
        const std::size_t at = row + i;
        if (at < begin || at >= begin + spans.size()) {
          REQUIRE(got[at] == rows[at]);
        } else {
          REQUIRE(near(got_values[at], expected[at - begin], dtype));
        }
      }
    }
    CHECK(x.guards_are_whole());
  }
}

TEST_CASE("head_norm_cuda normalises each span in place and touches nothing else") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Dtype dtype : kElements) {
    check_head_norm(device, random, {1, 8, 0, 8}, dtype);
    check_head_norm(device, random, {1, 5120, 0, 2048}, dtype);     // q of OLMo 3 32B
    check_head_norm(device, random, {1, 1024, 5120, 1024}, dtype);  // its k
    check_head_norm(device, random, {1, 16384, 8, 0}, dtype);
    check_head_norm(device, random, {7, 72, 16, 24}, dtype);
    check_head_norm(device, random, {16, 128, 128, 128}, dtype);
  }
}

TEST_CASE("a span's norm has the same bits alone and in a batch") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kTokens = 50;
  constexpr std::uint32_t kWidth = 2048;
  const auto rows = to_elements(random.normals(std::size_t{kTokens} * kWidth), Dtype::BF16);
  const auto normalised = [&](std::uint32_t first, std::uint32_t count) {
    const std::span<const std::uint16_t> all(rows);
    const DeviceBuffer<std::uint16_t> x(
        all.subspan(std::size_t{first} * kWidth, std::size_t{count} * kWidth));
    head_norm_cuda(device.op(), {.x = x.data(),
                                 .row_stride = kWidth,
                                 .eps = kNormEps,
                                 .num_tokens = count,
                                 .width = kWidth});
    return x.to_host();
  };
  const auto together = normalised(0, kTokens);
  for (const std::uint32_t token : {0U, 23U, kTokens - 1}) {
    const auto alone = normalised(token, 1);
    CHECK(
        std::equal(alone.begin(), alone.end(), together.begin() + std::ptrdiff_t{token} * kWidth));
  }
}

TEST_CASE("head_norm_cuda refuses widths and strides that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(head_norm_cuda(op, {.num_tokens = 1, .width = 12}), std::invalid_argument);
  CHECK_THROWS_AS(head_norm_cuda(op, {.num_tokens = 1, .width = 16392}), std::invalid_argument);
  CHECK_THROWS_AS(head_norm_cuda(op, {.row_stride = 12, .num_tokens = 1, .width = 8}),
                  std::invalid_argument);
  head_norm_cuda(op, {.row_stride = 8, .width = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
