// Goal: the residual stream and the next part's input are right for every pair of norms. Method:
// x against float64, within 2^-20 of its terms; h within one rounding of the norm of the x that was
// left; poisoned outputs between guards; the same rows alone and in a batch.
#include "ops/add_norm/add_norm_cuda.h"

#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

struct Shape {
  std::uint32_t hidden;
  Dtype dtype;
  Norm post;
  Norm next;
  float scale;
};

void check_add_norm(const TestDevice& device, Random& random, const Shape& shape) {
  CAPTURE(shape.hidden);
  CAPTURE(static_cast<int>(shape.post));
  CAPTURE(static_cast<int>(shape.next));
  const std::uint32_t tokens = random.integer(1, 20);
  const auto x = random.normals(std::size_t{tokens} * shape.hidden);
  const auto y = random.normals(x.size());
  const TestNorm post(random, shape.post, shape.hidden);
  const TestNorm next(random, shape.next, shape.hidden);
  const auto added = post(y);
  for (const bool leaves_h : {true, false}) {
    const DeviceBuffer<float> x_cuda(x), y_cuda(y);
    const DeviceBuffer<std::uint16_t> h(x.size());
    add_norm_cuda(device.op(), {.x = x_cuda.data(),
                                .y = y_cuda.data(),
                                .scale = shape.scale,
                                .post = post.device(),
                                .next = next.device(),
                                .h = leaves_h ? h.data() : nullptr,
                                .num_tokens = tokens,
                                .hidden_size = shape.hidden,
                                .dtype = shape.dtype});
    const auto x_got = x_cuda.to_host();
    const auto h_got = h.to_host();
    const auto h_values = to_floats(h_got, shape.dtype);
    const auto h_expected = next(x_got);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double add = shape.scale * added[i];
      const double allowed = kFloatError * (std::abs(x[i]) + std::abs(add));
      REQUIRE(std::abs(x_got[i] - (x[i] + add)) <= allowed);
      REQUIRE((leaves_h ? near(h_values[i], h_expected[i], shape.dtype) : h_got[i] == 0xFFFF));
    }
    CHECK(x_cuda.guards_are_whole());
    CHECK(h.guards_are_whole());
    CHECK(ops::test::same_bits(y_cuda.to_host(), y));
  }
}

TEST_CASE("add_norm_cuda adds what may be normalised, then leaves the norm of the sum") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Norm post : kNorms) {
    for (const Norm next : kNorms) {
      for (const std::uint32_t hidden : {8U, 72U, 2304U, 5120U, 8200U, 16384U}) {
        const Dtype dtype = kElements[random.integer(0, 1)];
        check_add_norm(device, random, {hidden, dtype, post, next, 1.0F});
        check_add_norm(device, random, {hidden, dtype, post, next, 0.22F});
      }
    }
  }
}

TEST_CASE("a row's sum and norm have the same bits alone and in a batch") {
  TestDevice device;
  Random random(fresh_seed());
  constexpr std::uint32_t kTokens = 40;
  constexpr std::uint32_t kHidden = 2560;
  const auto x = random.normals(std::size_t{kTokens} * kHidden);
  const auto y = random.normals(x.size());
  const TestNorm post(random, Norm::Weighted, kHidden), next(random, Norm::Weighted, kHidden);
  const auto run = [&](std::uint32_t first, std::uint32_t count) {
    const std::size_t begin = std::size_t{first} * kHidden, size = std::size_t{count} * kHidden;
    const DeviceBuffer<float> x_cuda(std::span<const float>(x).subspan(begin, size));
    const DeviceBuffer<float> y_cuda(std::span<const float>(y).subspan(begin, size));
    const DeviceBuffer<std::uint16_t> h(size);
    add_norm_cuda(device.op(), {.x = x_cuda.data(),
                                .y = y_cuda.data(),
                                .post = post.device(),
                                .next = next.device(),
                                .h = h.data(),
                                .num_tokens = count,
                                .hidden_size = kHidden});
    return std::pair(x_cuda.to_host(), h.to_host());
  };
  const auto [x_together, h_together] = run(0, kTokens);
  for (const std::uint32_t token : {0U, 17U, kTokens - 1}) {
    const auto [x_alone, h_alone] = run(token, 1);
    const std::size_t begin = std::size_t{token} * kHidden;
    CHECK(ops::test::same_bits(x_alone, std::span(x_together).subspan(begin, kHidden)));
    CHECK(std::equal(h_alone.begin(), h_alone.end(),
                     h_together.begin() + static_cast<std::ptrdiff_t>(begin)));
  }
}

TEST_CASE("add_norm_cuda refuses widths that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(add_norm_cuda(op, {.num_tokens = 1, .hidden_size = 12}), std::invalid_argument);
  add_norm_cuda(op, {.hidden_size = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
