// Goal: each activation is right everywhere on the axis. Method: float64, random and extreme
// values; the formulas of the papers, not those of the kernels.
#include "ops/glu/glu.h"

#include "ops/base/test_support.h"

namespace inferno::ops::test {

namespace {

constexpr Activation kSilu{ActivationKind::Silu};
constexpr Activation kGeluTanh{ActivationKind::GeluTanh};
constexpr Activation kClampedSilu{ActivationKind::ClampedSilu, 1.702F, 7.0F};  // of gpt-oss

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double reference(const Activation& activation, double gate, double up) {
  switch (activation.kind) {
    case ActivationKind::Silu:
      return gate * sigmoid(gate) * up;
    case ActivationKind::GeluTanh: {
      const double inner = std::sqrt(2.0 / std::acos(-1.0)) * (gate + 0.044715 * std::pow(gate, 3));
      // 1 + tanh(inner), which float64 would cancel far below 0.
      return 0.5 * gate * (2.0 * sigmoid(2.0 * inner)) * up;
    }
    case ActivationKind::ClampedSilu: {
      const double g = std::min(gate, double{activation.limit});
      const double u = std::clamp(up, -double{activation.limit}, double{activation.limit});
      return g * sigmoid(activation.alpha * g) * (u + 1.0);
    }
  }
  return 0.0;
}

// The error allowed, relative to the value, where the sigmoid's argument is z: e^z multiplies the
// rounding of z by z.
double allowed(const Activation& activation, double gate) {
  switch (activation.kind) {
    case ActivationKind::Silu:
      return 1e-6;
    case ActivationKind::GeluTanh:
      return 1e-6 + 2e-7 * std::abs(1.6 * gate + 0.0714 * std::pow(gate, 3));
    case ActivationKind::ClampedSilu:
      return 1e-6 + 1e-7 * std::abs(activation.alpha * gate);
  }
  return 0.0;
}

void check_size(Isa isa, const Activation& activation, std::uint32_t size) {
  CAPTURE(size);
  Device device(isa, 2);
  Random random(1);
  const std::uint32_t tokens = 3;
  auto gate_up = random.normals(std::size_t{tokens} * 2 * size);
  // GELU's tail is beyond the smallest normal float from -9 down.
  const float spread = activation.kind == ActivationKind::GeluTanh ? 2.0F : 8.0F;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < size; ++i) gate_up[t * 2 * size + i] *= spread;
    for (std::size_t i = 0; i < size; i += 2) gate_up[(t * 2 + 1) * size + i] *= 8.0F;
  }
  Output out(std::size_t{tokens} * size);
  glu(device.context(), {gate_up.data(), tokens, size, activation, out.data()});
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < size; ++i) {
      const double gate = gate_up[t * 2 * size + i];
      const double expected = reference(activation, gate, gate_up[(t * 2 + 1) * size + i]);
      const double error = std::abs(out.span()[t * size + i] - expected);
      REQUIRE(error <= allowed(activation, gate) * std::abs(expected));
    }
  }
  CHECK(out.guards_are_whole());
}

void check_activation(const Activation& activation) {
  for_each_isa([&](Isa isa) {
    for (const std::uint32_t size : {1U, 7U, 16U, 29U, 8192U, 8200U}) {
      check_size(isa, activation, size);
    }
  });
}

std::vector<float> activate(Isa isa, const Activation& activation, std::vector<float> gates,
                            const std::vector<float>& ups) {
  Device device(isa, 1);
  std::vector<float> out(gates.size());
  gates.insert(gates.end(), ups.begin(), ups.end());
  glu(device.context(),
      {gates.data(), 1, static_cast<std::uint32_t>(out.size()), activation, out.data()});
  return out;
}

}  // namespace

TEST_CASE("silu agrees with float64") { check_activation(kSilu); }

TEST_CASE("gelu in its tanh form agrees with float64") { check_activation(kGeluTanh); }

TEST_CASE("the clamped silu agrees with float64") { check_activation(kClampedSilu); }

TEST_CASE("silu and gelu are finite far out and keep a NaN") {
  for_each_isa([](Isa isa) {
    for (const Activation& activation : {kSilu, kGeluTanh}) {
      const auto out = activate(isa, activation, {-1e30F, -200.0F, 0.0F, 200.0F, 1e30F, kPoison},
                                std::vector<float>(6, 1.0F));
      CHECK(std::isfinite(out[0]));
      CHECK(std::abs(out[1]) < 1e-30F);
      CHECK(out[2] == 0.0F);
      CHECK(out[3] == 200.0F);
      CHECK(out[4] == 1e30F);
      CHECK(std::isnan(out[5]));
    }
  });
}

TEST_CASE("the clamped silu cuts gates above and ups on both sides, and keeps a NaN of either") {
  for_each_isa([](Isa isa) {
    const std::vector<float> gates = {100.0F, 1e30F, 7.0F, 7.0F, -1e30F, kPoison, 1.0F};
    const std::vector<float> ups = {1.0F, 0.0F, 1e30F, -1e30F, 1.0F, 1.0F, kPoison};
    const auto out = activate(isa, kClampedSilu, gates, ups);
    const double most = 7.0 / (1.0 + std::exp(-7.0 * 1.702));
    CHECK(out[0] == doctest::Approx(2.0 * most).epsilon(1e-6));
    CHECK(out[1] == doctest::Approx(most).epsilon(1e-6));
    CHECK(out[2] == doctest::Approx(8.0 * most).epsilon(1e-6));
    CHECK(out[3] == doctest::Approx(-6.0 * most).epsilon(1e-6));
    CHECK(std::abs(out[4]) < 1e-6F);
    CHECK(std::isnan(out[5]));
    CHECK(std::isnan(out[6]));
  });
}

}  // namespace inferno::ops::test
