// Goal: gates let through what the formula says, one for each element or for many. Method: float64,
// random and extreme gates; rows alone against batches, bit by bit.
#include "ops/sigmoid_gate/sigmoid_gate.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

struct Shape {
  std::uint32_t tokens;
  std::uint32_t gates;
  std::uint32_t width;

  std::size_t row_size() const { return std::size_t{gates} * width; }
};

std::vector<float> gated(Isa isa, const Shape& shape, const std::vector<float>& gates,
                         const std::vector<float>& x) {
  Device device(isa, 3);
  Output out(x.size());
  std::copy(x.begin(), x.end(), out.data());
  sigmoid_gate(device.context(),
               {gates.data(), shape.tokens, shape.gates, shape.width, out.data()});
  CHECK(out.guards_are_whole());
  return {out.span().begin(), out.span().end()};
}

void check_shape(Isa isa, const Shape& shape) {
  CAPTURE(shape.gates);
  CAPTURE(shape.width);
  Random random(1);
  auto gates = random.normals(std::size_t{shape.tokens} * shape.gates);
  for (std::size_t i = 0; i < gates.size(); i += 2) gates[i] *= 8.0F;
  const auto x = random.normals(shape.tokens * shape.row_size());
  const auto out = gated(isa, shape, gates, x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = x[i] / (1.0 + std::exp(-double{gates[i / shape.width]}));
    REQUIRE(std::abs(out[i] - expected) <= 1e-6 * std::abs(expected));
  }
  const Shape one{1, shape.gates, shape.width};
  for (const std::size_t token : {std::size_t{0}, std::size_t{shape.tokens} - 1}) {
    const auto begin = [&](const std::vector<float>& all, std::size_t size) {
      return all.begin() + static_cast<std::ptrdiff_t>(token * size);
    };
    const auto alone =
        gated(isa, one, {begin(gates, one.gates), begin(gates, one.gates) + one.gates},
              {begin(x, one.row_size()), begin(x, one.row_size()) + one.gates * one.width});
    CHECK(same_bits(alone, std::span(out).subspan(token * one.row_size(), one.row_size())));
  }
}

}  // namespace

TEST_CASE("gates agree with float64, and a row has its own bits") {
  for_each_isa([](Isa isa) {
    for (const Shape& shape : {Shape{1, 1, 1},
                               {3, 29, 1},
                               {17, 512, 1},
                               {2, 8200, 1},
                               {5, 1, 108},
                               {40, 1, 1408},
                               {9, 6, 12}}) {
      check_shape(isa, shape);
    }
  });
}

TEST_CASE("gates far out are open or shut, and a NaN stays one") {
  for_each_isa([](Isa isa) {
    const std::vector<float> gates = {-1e30F, -200.0F, 0.0F, 200.0F, 1e30F, kPoison, 1.0F};
    const std::vector<float> x = {3.0F, 3.0F, 3.0F, 3.0F, 3.0F, 3.0F, kPoison};
    for (const Shape& shape : {Shape{1, 7, 1}, {7, 1, 1}}) {
      const auto out = gated(isa, shape, gates, x);
      CHECK(std::abs(out[0]) < 1e-30F);
      CHECK(std::abs(out[1]) < 1e-30F);
      CHECK(out[2] == 1.5F);
      CHECK(out[3] == 3.0F);
      CHECK(out[4] == 3.0F);
      CHECK(std::isnan(out[5]));
      CHECK(std::isnan(out[6]));
    }
  });
}

}  // namespace inferno::ops::test
