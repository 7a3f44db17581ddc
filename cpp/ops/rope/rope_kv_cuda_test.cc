// Goal: q, k and v come out of rope_kv_cuda as every kind of layer wants them, and only where they
// belong. Method: norm, rope and the query's scale in float64 on the same rounded inputs, within
// one rounding of an element; values bit by bit; the cache is poisoned, and what is not written
// stays so; the same tokens alone and in a batch.
#include "ops/rope/rope_kv_cuda.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "ops/cuda/elementwise_fixture.h"

namespace inferno::ops::cuda::test {
namespace {

struct Shape {
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t block_size;
};

// What a layer does. rotary_dim 0: no rope.
struct Rule {
  std::uint32_t rotary_dim;
  bool interleaved = false;
  Norm q_norm = Norm::None;
  Norm k_norm = Norm::None;
  float query_beta = 0;
};

constexpr float kOriginalPositions = 100;
constexpr std::uint32_t kNumBlocks = 9;

// A value and the sum of its terms' magnitudes.
struct Exact {
  double value;
  double magnitude;
};

// A batch of random inputs, some of its tokens without a slot.
class Batch {
 public:
  Batch(Random& random, const Shape& s, const Rule& r, Dtype type)
      : shape(s),
        rule(r),
        dtype(type),
        tokens(random.integer(1, 70)),
        qkv(to_elements(random.normals(tokens * row_size()), dtype)),
        cos_sin(random.normals(std::size_t{tokens} * rule.rotary_dim)),
        positions(integers(random, tokens, 5 * static_cast<std::uint32_t>(kOriginalPositions))),
        q_norm(random, rule.q_norm, shape.head_dim),
        k_norm(random, rule.k_norm, shape.head_dim) {
    slots.resize(std::size_t{kNumBlocks} * shape.block_size);
    for (std::uint32_t i = 0; i < slots.size(); ++i) slots[i] = i;
    random.shuffle(slots);
    slots.resize(tokens);
    for (auto& slot : slots) {
      if (random.integer(0, 4) == 0) slot = kNoSlot;
    }
  }

  std::uint32_t num_rows() const { return shape.num_heads + 2 * shape.num_kv_heads; }
  std::size_t row_size() const { return std::size_t{num_rows()} * shape.head_dim; }
  std::size_t cache_size() const {
    return std::size_t{kNumBlocks} * shape.block_size * shape.num_kv_heads * shape.head_dim;
  }
  // Where a head of a token's slot begins in k and v.
  std::size_t cache_at(std::size_t token, std::size_t head) const {
    const std::size_t block = slots[token] / shape.block_size;
    return ((block * shape.num_kv_heads + head) * shape.block_size +
            slots[token] % shape.block_size) *
           shape.head_dim;
  }
  bool is_query(std::uint32_t row) const { return row < shape.num_heads; }

  // A row of q or k.
  std::vector<Exact> expected(std::size_t token, std::uint32_t row) const {
    const std::size_t at = token * row_size() + std::size_t{row} * shape.head_dim;
    const auto inputs = to_floats(std::span(qkv).subspan(at, shape.head_dim), dtype);
    std::vector<Exact> result;
    for (const double value : is_query(row) ? q_norm(inputs) : k_norm(inputs)) {
      result.push_back({value, std::abs(value)});
    }
    const std::size_t half = rule.rotary_dim / 2;
    const float* angles = cos_sin.data() + token * rule.rotary_dim;
    for (std::size_t i = 0; i < half; ++i) {
      Exact& first = result[rule.interleaved ? 2 * i : i];
      Exact& second = result[rule.interleaved ? 2 * i + 1 : i + half];
      turn(first, second, angles[i], angles[half + i]);
    }
    if (!is_query(row) || rule.query_beta == 0) return result;
    const double periods = std::floor(positions[token] / kOriginalPositions);
    for (Exact& exact : result) {
      exact.value *= 1 + rule.query_beta * std::log(1 + periods);
      exact.magnitude *= 1 + rule.query_beta * std::log(1 + periods);
    }
    return result;
  }

  Shape shape;
  Rule rule;
  Dtype dtype;
  std::uint32_t tokens;
  std::vector<std::uint16_t> qkv;
  std::vector<float> cos_sin;
  std::vector<std::uint32_t> positions, slots;
  TestNorm q_norm, k_norm;

 private:
  static void turn(Exact& first, Exact& second, double cosine, double sine) {
    const double value = first.value * cosine - second.value * sine;
    second.value = second.value * cosine + first.value * sine;
    first.value = value;
    const double magnitude = first.magnitude * std::abs(cosine) + second.magnitude * std::abs(sine);
    second.magnitude = second.magnitude * std::abs(cosine) + first.magnitude * std::abs(sine);
    first.magnitude = magnitude;
  }
};

// What a call left.
struct Left {
  std::vector<std::uint16_t> qkv, k, v;
};

// The same with a cache in fp8.
struct CodesLeft {
  std::vector<std::uint16_t> qkv;
  std::vector<std::uint8_t> k, v;
};

struct Scales {
  float k, v;
};

struct TokenRange {
  std::size_t first;
  std::uint32_t count;
};

// What becomes of qkv.
std::vector<std::uint16_t> call(const TestDevice& device, const Batch& batch,
                                const KvLayerCuda& layer, const TokenRange& tokens) {
  const Rule& rule = batch.rule;
  const auto part = [&](const auto& values, std::size_t width) {
    return std::span(values).subspan(tokens.first * width, tokens.count * width);
  };
  const DeviceBuffer<std::uint16_t> qkv(part(batch.qkv, batch.row_size()));
  const DeviceBuffer<float> cos_sin(part(batch.cos_sin, rule.rotary_dim));
  const DeviceBuffer<std::uint32_t> slots(part(batch.slots, 1)),
      positions(part(batch.positions, 1));
  rope_kv_cuda(device.op(), layer,
               {.qkv = qkv.data(),
                .cos_sin = rule.rotary_dim == 0 ? nullptr : cos_sin.data(),
                .slot_mapping = slots.data(),
                .num_tokens = tokens.count,
                .num_heads = batch.shape.num_heads,
                .rotary_dim = rule.rotary_dim,
                .interleaved = rule.interleaved,
                .q_norm = batch.q_norm.device(),
                .k_norm = batch.k_norm.device(),
                .query_beta = rule.query_beta,
                .query_original_positions = kOriginalPositions,
                .positions = positions.data()});
  CHECK(qkv.guards_are_whole());
  return qkv.to_host();
}

// Tokens [first, first + count) of a batch.
Left run(const TestDevice& device, const Batch& batch, std::size_t first, std::uint32_t count) {
  const Shape& shape = batch.shape;
  const DeviceBuffer<std::uint16_t> k(batch.cache_size()), v(batch.cache_size());
  const KvLayerCuda layer{k.data(),         v.data(),           batch.dtype,   kNumBlocks,
                          shape.block_size, shape.num_kv_heads, shape.head_dim};
  auto qkv = call(device, batch, layer, {first, count});
  CHECK(k.guards_are_whole());
  CHECK(v.guards_are_whole());
  return {std::move(qkv), k.to_host(), v.to_host()};
}

CodesLeft run_fp8(const TestDevice& device, const Batch& batch, const Scales& scales) {
  const Shape& shape = batch.shape;
  const DeviceBuffer<std::uint8_t> k(batch.cache_size()), v(batch.cache_size());
  KvLayerCuda layer{k.data(),         v.data(),           batch.dtype,   kNumBlocks,
                    shape.block_size, shape.num_kv_heads, shape.head_dim};
  layer.fp8 = true;
  layer.k_scale = scales.k;
  layer.v_scale = scales.v;
  auto qkv = call(device, batch, layer, {0, batch.tokens});
  CHECK(k.guards_are_whole());
  CHECK(v.guards_are_whole());
  return {std::move(qkv), k.to_host(), v.to_host()};
}

void check_row(const Batch& batch, const std::uint16_t* got, std::size_t token, std::uint32_t row) {
  const auto values = to_floats({got, batch.shape.head_dim}, batch.dtype);
  const auto expected = batch.expected(token, row);
  for (std::size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i);
    REQUIRE(near(values[i], expected[i].value, expected[i].magnitude, batch.dtype));
  }
}

void check_token(const Batch& batch, const Left& left, std::size_t token) {
  const Shape& shape = batch.shape;
  const std::size_t begin = token * batch.row_size();
  for (std::uint32_t row = 0; row < shape.num_heads; ++row) {
    check_row(batch, left.qkv.data() + begin + std::size_t{row} * shape.head_dim, token, row);
  }
  if (batch.slots[token] == kNoSlot) return;
  for (std::uint32_t head = 0; head < shape.num_kv_heads; ++head) {
    const std::size_t at = batch.cache_at(token, head);
    check_row(batch, left.k.data() + at, token, shape.num_heads + head);
    const std::size_t value_row = shape.num_heads + shape.num_kv_heads + head;
    const std::uint16_t* value = batch.qkv.data() + begin + value_row * shape.head_dim;
    REQUIRE(std::equal(value, value + shape.head_dim, left.v.data() + at));
  }
}

void check_rope_kv(const TestDevice& device, Random& random, const Shape& shape, const Rule& rule) {
  CAPTURE(shape.head_dim);
  CAPTURE(shape.num_heads);
  CAPTURE(rule.rotary_dim);
  CAPTURE(rule.interleaved);
  const Batch batch(random, shape, rule, kElements[random.integer(0, 1)]);
  const Left left = run(device, batch, 0, batch.tokens);
  std::ptrdiff_t unwritten = static_cast<std::ptrdiff_t>(batch.cache_size());
  for (std::size_t token = 0; token < batch.tokens; ++token) {
    check_token(batch, left, token);
    if (batch.slots[token] != kNoSlot) unwritten -= shape.num_kv_heads * shape.head_dim;
  }
  const auto poison = std::uint16_t{0xFFFF};
  CHECK(std::count(left.k.begin(), left.k.end(), poison) == unwritten);
  CHECK(std::count(left.v.begin(), left.v.end(), poison) == unwritten);
}

// Grouped and not, blocks of every size.
void check_shapes(const TestDevice& device, Random& random, std::uint32_t head_dim,
                  const Rule& rule) {
  check_rope_kv(device, random, {32, 8, head_dim, 16}, rule);
  check_rope_kv(device, random, {3, 1, head_dim, 128}, rule);
  check_rope_kv(device, random, {7, 7, head_dim, 64}, rule);
  check_rope_kv(device, random, {64, 8, head_dim, 32}, rule);
}

TEST_CASE("rope_kv_cuda turns q in place, writes turned keys and values, none for no slot") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
    check_shapes(device, random, head_dim, {head_dim});
    check_shapes(device, random, head_dim, {head_dim});
  }
}

TEST_CASE("rope_kv_cuda turns a part of a head, halves or neighbours") {
  TestDevice device;
  Random random(fresh_seed());
  for (const bool interleaved : {false, true}) {
    check_shapes(device, random, 128, {96, interleaved});
    check_shapes(device, random, 256, {64, interleaved});
    check_shapes(device, random, 80, {32, interleaved});
    check_shapes(device, random, 96, {96, interleaved});
    check_shapes(device, random, 32, {16, interleaved});
    check_rope_kv(device, random, {4, 2, 512, 16}, {128, interleaved});
  }
}

TEST_CASE("rope_kv_cuda normalises heads before it turns them") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {16U, 64U, 80U, 128U, 256U, 512U}) {
    check_shapes(device, random, head_dim, {head_dim, false, Norm::Weighted, Norm::Weighted});
    check_shapes(device, random, head_dim, {head_dim, false, Norm::Unweighted, Norm::Unweighted});
  }
  check_shapes(device, random, 128, {64, false, Norm::Weighted, Norm::Unweighted});
  check_shapes(device, random, 128, {64, true, Norm::Weighted, Norm::None});
  check_shapes(device, random, 128, {0, false, Norm::None, Norm::Weighted});
}

TEST_CASE(
    "rope_kv_cuda scales queries by their position, and writes keys and values without rope") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {64U, 128U}) {
    check_shapes(device, random, head_dim, {0});
    check_shapes(device, random, head_dim,
                 {head_dim, false, Norm::None, Norm::None, /*query_beta=*/0.1F});
    check_shapes(device, random, head_dim,
                 {0, false, Norm::Weighted, Norm::Weighted, /*query_beta=*/0.3F});
  }
}

TEST_CASE("a token's heads have the same bits alone and in a batch") {
  TestDevice device;
  Random random(fresh_seed());
  const Batch batch(random, {16, 4, 128, 16}, {96, false, Norm::Weighted, Norm::Weighted, 0.1F},
                    Dtype::BF16);
  const Left together = run(device, batch, 0, batch.tokens);
  for (const std::size_t token : {std::size_t{0}, std::size_t{batch.tokens / 2}}) {
    const Left alone = run(device, batch, token, 1);
    const auto begin = static_cast<std::ptrdiff_t>(token * batch.row_size());
    CHECK(std::equal(alone.qkv.begin(), alone.qkv.end(), together.qkv.begin() + begin));
    if (batch.slots[token] == kNoSlot) continue;
    for (std::uint32_t head = 0; head < batch.shape.num_kv_heads; ++head) {
      const auto at = static_cast<std::ptrdiff_t>(batch.cache_at(token, head));
      const auto end = at + batch.shape.head_dim;
      CHECK(std::equal(alone.k.begin() + at, alone.k.begin() + end, together.k.begin() + at));
    }
  }
}

// The cache of a call in fp8 is the codes of what float64 gives, over the scale: the nearest, or
// the one next to it where a rounding of the float makes the difference.
void check_fp8(const TestDevice& device, Random& random, const Shape& shape, const Rule& rule) {
  CAPTURE(shape.head_dim);
  CAPTURE(rule.rotary_dim);
  const Scales scales{0.031F, 0.0063F};
  const Batch batch(random, shape, rule, kElements[random.integer(0, 1)]);
  const Left plain = run(device, batch, 0, batch.tokens);
  const CodesLeft left = run_fp8(device, batch, scales);
  CHECK(left.qkv == plain.qkv);
  std::ptrdiff_t unwritten = static_cast<std::ptrdiff_t>(batch.cache_size());
  for (std::size_t token = 0; token < batch.tokens; ++token) {
    if (batch.slots[token] == kNoSlot) continue;
    unwritten -= shape.num_kv_heads * shape.head_dim;
    for (std::uint32_t head = 0; head < shape.num_kv_heads; ++head) {
      const std::size_t at = batch.cache_at(token, head);
      const auto keys = batch.expected(token, shape.num_heads + head);
      const std::size_t row = shape.num_heads + shape.num_kv_heads + head;
      const auto values =
          to_floats(std::span(batch.qkv).subspan(token * batch.row_size() + row * shape.head_dim,
                                                 shape.head_dim),
                    batch.dtype);
      for (std::size_t i = 0; i < shape.head_dim; ++i) {
        const double error = 1e-5 * keys[i].magnitude / scales.k;
        const double key = keys[i].value / scales.k;
        const float got = e4m3_to_f32(left.k[at + i]);
        REQUIRE(got >= e4m3_to_f32(f32_to_e4m3(static_cast<float>(key - error))));
        REQUIRE(got <= e4m3_to_f32(f32_to_e4m3(static_cast<float>(key + error))));
        REQUIRE(left.v[at + i] == f32_to_e4m3(values[i] / scales.v));
      }
    }
  }
  CHECK(std::ranges::count(left.k, 0xFF) == unwritten);
  CHECK(std::ranges::count(left.v, 0xFF) == unwritten);
}

TEST_CASE("rope_kv_cuda writes keys and values in fp8, divided by their scales") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
    check_fp8(device, random, {32, 8, head_dim, 16}, {head_dim});
    check_fp8(device, random, {3, 1, head_dim, 128}, {head_dim / 2, true});
    check_fp8(device, random, {7, 7, head_dim, 64},
              {head_dim, false, Norm::Weighted, Norm::Weighted});
    check_fp8(device, random, {8, 2, head_dim, 32}, {0});
  }
}

TEST_CASE("rope_kv_cuda refuses shapes that it has not, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  const float angle = 0;
  const auto refuses = [&](std::uint32_t head_dim, const RopeKvArgs& args) {
    const KvLayerCuda layer{.num_kv_heads = 1, .head_dim = head_dim};
    CHECK_THROWS_AS(rope_kv_cuda(op, layer, args), std::invalid_argument);
  };
  refuses(40, {.num_tokens = 1});
  refuses(528, {.num_tokens = 1});
  refuses(64, {.cos_sin = &angle, .num_tokens = 1});
  refuses(64, {.cos_sin = &angle, .num_tokens = 1, .rotary_dim = 24});
  refuses(64, {.cos_sin = &angle, .num_tokens = 1, .rotary_dim = 80});
  rope_kv_cuda(op, {.head_dim = 64}, {});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
