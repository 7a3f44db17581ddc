// Goal: the start of a step is right: rows, their first norm, the angles of every rope. Method:
// rows bit by bit, norms and angles in float64, within one rounding of an element and within 3e-7;
// poisoned outputs between guards; the same tokens alone and in a batch.
#include "ops/embed/embed_cuda.h"

#include <stdexcept>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

// A rope on the host and on the device.
struct Rope {
  std::vector<float> inv_freq;
  float scale;
  DeviceBuffer<float> device_inv_freq;
  DeviceBuffer<float> cos_sin;

  Rope(std::uint32_t half, float factor, std::uint32_t tokens)
      : inv_freq(frequencies(half)),
        scale(factor),
        device_inv_freq(inv_freq),
        cos_sin(std::size_t{tokens} * 2 * half) {}

  static std::vector<float> frequencies(std::uint32_t half) {
    std::vector<float> values(half);
    for (std::uint32_t i = 0; i < half; ++i) {
      values[i] = static_cast<float>(std::pow(500000.0, -static_cast<double>(i) / half));
    }
    return values;
  }

  RopeTable table() const {
    const auto half = static_cast<std::uint32_t>(inv_freq.size());
    return {device_inv_freq.data(), half, scale, cos_sin.data()};
  }

  // Of the float product of position and frequency.
  void check(std::span<const std::uint32_t> positions) const {
    const auto got = cos_sin.to_host();
    const std::size_t half = inv_freq.size();
    for (std::size_t t = 0; t < positions.size(); ++t) {
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = static_cast<float>(positions[t]) * inv_freq[i];
        const double allowed = 3e-7 * scale;
        REQUIRE(std::abs(got[t * 2 * half + i] - scale * std::cos(angle)) <= allowed);
        REQUIRE(std::abs(got[t * 2 * half + half + i] - scale * std::sin(angle)) <= allowed);
      }
    }
    CHECK(cos_sin.guards_are_whole());
  }
};

struct Shape {
  std::uint32_t hidden;
  Dtype dtype;
  std::vector<std::pair<std::uint32_t, float>> ropes;  // half and scale
  Norm norm = Norm::Weighted;
  float scale = 1;
};

// One step's tokens on the host, and what is to come of them.
struct Step {
  static constexpr std::uint32_t kVocab = 997;
  Shape shape;
  std::uint32_t tokens;
  std::vector<std::uint16_t> table;
  std::vector<std::uint32_t> ids, seats, sampled, positions;

  Step(Random& random, const Shape& s) : shape(s), tokens(random.integer(1, 60)) {
    table = to_elements(random.normals(std::size_t{kVocab} * shape.hidden), shape.dtype);
    ids = integers(random, tokens, kVocab - 1);
    ids[tokens / 2] = kVocab + 5;
    sampled = integers(random, 16, kVocab - 1);
    sampled[3] = 0xFFFFFFFF;
    seats.assign(tokens, kNoSeat);
    for (auto& seat : seats) {
      if (random.integer(0, 1) == 0) seat = random.integer(0, 15);
    }
    positions = integers(random, tokens, 200'000);
    positions[0] = 0;
  }

  std::vector<float> rows() const {
    const auto values = to_floats(table, shape.dtype);
    std::vector<float> x;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::size_t id = seats[t] == kNoSeat ? ids[t] : sampled[seats[t]];
      if (id >= kVocab) id = 0;
      for (std::size_t i = 0; i < shape.hidden; ++i) {
        x.push_back(values[id * shape.hidden + i] * shape.scale);
      }
    }
    return x;
  }
};

void check_embed(const TestDevice& device, Random& random, const Shape& shape) {
  CAPTURE(shape.hidden);
  CAPTURE(static_cast<int>(shape.norm));
  const Step step(random, shape);
  const TestNorm norm(random, shape.norm, shape.hidden);
  const auto x_expected = step.rows();
  const auto h_expected = norm(x_expected);

  const DeviceBuffer<std::uint16_t> table(step.table);
  const DeviceBuffer<std::uint32_t> ids(step.ids), seats(step.seats), sampled(step.sampled),
      positions(step.positions);
  const DeviceBuffer<float> x(x_expected.size());
  const DeviceBuffer<std::uint16_t> h(x_expected.size());
  EmbedCudaArgs args{.table = {table.data(), Step::kVocab, shape.hidden, shape.dtype},
                     .token_ids = ids.data(),
                     .feed_seats = seats.data(),
                     .sampled_ids = sampled.data(),
                     .num_tokens = step.tokens,
                     .scale = shape.scale,
                     .positions = positions.data(),
                     .norm = norm.device(),
                     .x = x.data(),
                     .h = h.data()};
  std::vector<std::unique_ptr<Rope>> ropes;
  for (const auto& [half, scale] : shape.ropes) {
    ropes.push_back(std::make_unique<Rope>(half, scale, step.tokens));
    args.ropes[args.num_ropes++] = ropes.back()->table();
  }
  embed_cuda(device.op(), args);

  CHECK(ops::test::same_bits(x.to_host(), x_expected));
  const auto h_values = to_floats(h.to_host(), shape.dtype);
  for (std::size_t i = 0; i < h_values.size(); ++i) {
    REQUIRE(near(h_values[i], h_expected[i], shape.dtype));
  }
  for (const auto& rope : ropes) rope->check(step.positions);
  CHECK(x.guards_are_whole());
  CHECK(h.guards_are_whole());
}

TEST_CASE("embed_cuda gives rows of the table, their norm and the angles; seats feed their token") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Dtype dtype : kElements) {
    for (const std::uint32_t hidden : {64U, 2048U, 4096U, 12288U}) {
      check_embed(device, random, {hidden, dtype, {{64, 1.0F}}});
    }
    for (const std::uint32_t half : {16U, 48U, 128U}) {
      check_embed(device, random, {40, dtype, {{half, 1.0F}}});
    }
  }
}

TEST_CASE("embed_cuda scales rows and takes every kind of norm and up to four ropes") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Dtype dtype : kElements) {
    for (const Norm norm : kNorms) {
      check_embed(device, random, {2304, dtype, {{128, 1.0F}, {128, 1.0F}}, norm, 48.0F});
      check_embed(device, random, {2880, dtype, {{32, 1.3466F}}, norm});
      check_embed(device, random, {8200, dtype, {}, norm, 0.7F});
      check_embed(device, random,
                  {72, dtype, {{8, 1.0F}, {48, 1.19F}, {64, 1.0F}, {256, 0.5F}}, norm, 12.0F});
    }
  }
}

TEST_CASE("embed_cuda refuses what it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  EmbedCudaArgs args{};
  embed_cuda(op, args);
  args.num_ropes = kMaxRopes + 1;
  CHECK_THROWS_AS(embed_cuda(op, args), std::invalid_argument);
  args = EmbedCudaArgs{};
  args.table = {nullptr, 8, 12, Dtype::BF16};
  args.num_tokens = 1;
  CHECK_THROWS_AS(embed_cuda(op, args), std::invalid_argument);
}

}  // namespace
}  // namespace inferno::ops::cuda::test
