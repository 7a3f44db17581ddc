// Goal: the GPU's ops around products agree with their contracts. Method: the CPU ops on the same
// rounded inputs, within one rounding of the result's type; poisoned outputs between guards.
#include "ops/cuda/elementwise_cuda.h"

#include <stdexcept>

#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"
#include "ops/kv_write/kv_write.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/silu_mul/silu_mul.h"

namespace inferno::ops::cuda::test {
namespace {

using ops::test::Device;
using ops::test::Random;

constexpr Dtype kDtypes[] = {Dtype::BF16, Dtype::F16};

// Half a unit in the last place of an element, of which a float's errors may use a little more.
float rounding(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1.02p-8F : 0x1.02p-11F; }

bool near(float value, float expected, Dtype dtype) {
  return std::abs(value - expected) <= rounding(dtype) * std::abs(expected) + 1e-6F;
}

std::vector<std::uint32_t> integers(Random& random, std::size_t count, std::uint32_t high) {
  std::vector<std::uint32_t> values(count);
  for (auto& value : values) value = random.integer(0, high);
  return values;
}

std::vector<float> norm_of(std::span<const float> x, std::span<const float> weight, float eps) {
  Device cpu(Isa::Portable, 1);
  const auto hidden = static_cast<std::uint32_t>(weight.size());
  std::vector<float> out(x.size());
  rms_norm(cpu.context(), {x.data(), weight.data(), eps,
                           static_cast<std::uint32_t>(x.size() / hidden), hidden, out.data()});
  return out;
}

TEST_CASE("rms_norm_cuda rounds what the CPU's norm gives, for chosen rows") {
  TestDevice device;
  Random random(fresh_seed());
  for (const std::uint32_t hidden : {8U, 72U, 2048U, 4096U, 8192U, 8200U, 16384U}) {
    for (const Dtype dtype : kDtypes) {
      CAPTURE(hidden);
      const std::uint32_t tokens = random.integer(1, 40);
      const auto x = random.normals(std::size_t{50} * hidden);
      const auto weight = random.normals(hidden);
      const auto expected = norm_of(x, weight, 1e-5F);
      auto rows = integers(random, tokens, 49);
      for (const bool all : {true, false}) {
        const DeviceBuffer<float> x_cuda(x);
        const DeviceBuffer<float> weight_cuda(weight);
        const DeviceBuffer<std::uint32_t> rows_cuda(rows);
        const DeviceBuffer<std::uint16_t> out(std::size_t{tokens} * hidden);
        rms_norm_cuda(device.op(), {x_cuda.data(), all ? nullptr : rows_cuda.data(),
                                    weight_cuda.data(), 1e-5F, tokens, hidden, dtype, out.data()});
        const auto values = to_floats(out.to_host(), dtype);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const std::size_t row = all ? i / hidden : rows[i / hidden];
          REQUIRE(near(values[i], expected[row * hidden + i % hidden], dtype));
        }
        CHECK(out.guards_are_whole());
      }
    }
  }
}

TEST_CASE("a row's norm has the same bits alone and in a batch") {
  TestDevice device;
  Random random(fresh_seed());
  const std::uint32_t hidden = 4096;
  const std::uint32_t tokens = 300;
  const DeviceBuffer<float> x(random.normals(std::size_t{tokens} * hidden));
  const DeviceBuffer<float> weight(random.normals(hidden));
  const DeviceBuffer<std::uint16_t> all(std::size_t{tokens} * hidden);
  RmsNormCudaArgs args{x.data(), nullptr, weight.data(), 1e-6F,
                       tokens,   hidden,  Dtype::BF16,   all.data()};
  rms_norm_cuda(device.op(), args);
  const auto batch = all.to_host();
  for (const std::uint32_t token : {0U, 131U, 299U}) {
    const DeviceBuffer<std::uint16_t> alone(hidden);
    args.x = x.data() + std::size_t{token} * hidden;
    args.num_tokens = 1;
    args.out = alone.data();
    rms_norm_cuda(device.op(), args);
    const auto row = alone.to_host();
    CHECK(std::equal(row.begin(), row.end(), batch.begin() + std::ptrdiff_t{token} * hidden));
  }
}

// One step's tokens on the host, and what is to come of them.
struct EmbedCase {
  static constexpr std::uint32_t kVocab = 997;
  std::uint32_t hidden;
  std::uint32_t head_dim;
  Dtype dtype;
  std::uint32_t tokens;
  std::vector<std::uint16_t> table;
  std::vector<float> weight;
  std::vector<float> inv_freq;
  std::vector<std::uint32_t> ids, seats, sampled, positions;

  EmbedCase(Random& random, std::uint32_t hidden_size, std::uint32_t head_size, Dtype type)
      : hidden(hidden_size), head_dim(head_size), dtype(type), tokens(random.integer(1, 60)) {
    table = to_elements(random.normals(std::size_t{kVocab} * hidden), dtype);
    weight = random.normals(hidden);
    inv_freq.resize(head_dim / 2);
    rope_inv_freq({head_dim, 500000.0F, RopeScaling::None, 1, 1, 4, 8192}, inv_freq);
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
    const auto values = to_floats(table, dtype);
    std::vector<float> x;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::size_t id = seats[t] == kNoSeat ? ids[t] : sampled[seats[t]];
      if (id >= kVocab) id = 0;
      x.insert(x.end(), values.data() + id * hidden, values.data() + (id + 1) * hidden);
    }
    return x;
  }
};

void check_embed(const TestDevice& device, const EmbedCase& step) {
  CAPTURE(step.hidden);
  CAPTURE(step.head_dim);
  const auto x_expected = step.rows();
  const auto h_expected = norm_of(x_expected, step.weight, 1e-5F);
  Device cpu(Isa::Portable, 1);
  std::vector<float> angles_expected(std::size_t{step.tokens} * step.head_dim);
  rope_angles(cpu.context(), step.inv_freq, step.positions, angles_expected.data());

  const DeviceBuffer<std::uint16_t> table(step.table);
  const DeviceBuffer<std::uint32_t> ids(step.ids), seats(step.seats), sampled(step.sampled),
      positions(step.positions);
  const DeviceBuffer<float> inv_freq(step.inv_freq), weight(step.weight);
  const DeviceBuffer<float> x(x_expected.size()), angles(angles_expected.size());
  const DeviceBuffer<std::uint16_t> h(x_expected.size());
  embed_cuda(device.op(), {.table = {table.data(), EmbedCase::kVocab, step.hidden, step.dtype},
                           .token_ids = ids.data(),
                           .feed_seats = seats.data(),
                           .sampled_ids = sampled.data(),
                           .num_tokens = step.tokens,
                           .positions = positions.data(),
                           .inv_freq = inv_freq.data(),
                           .head_dim = step.head_dim,
                           .norm_weight = weight.data(),
                           .eps = 1e-5F,
                           .x = x.data(),
                           .h = h.data(),
                           .cos_sin = angles.data()});

  CHECK(ops::test::same_bits(x.to_host(), x_expected));
  const auto h_values = to_floats(h.to_host(), step.dtype);
  for (std::size_t i = 0; i < h_values.size(); ++i) {
    REQUIRE(near(h_values[i], h_expected[i], step.dtype));
  }
  const auto angle_values = angles.to_host();
  for (std::size_t i = 0; i < angle_values.size(); ++i) {
    REQUIRE(std::abs(angle_values[i] - angles_expected[i]) <= 3e-7F);
  }
  CHECK(x.guards_are_whole());
  CHECK(h.guards_are_whole());
  CHECK(angles.guards_are_whole());
}

TEST_CASE("embed_cuda gives rows of the table, their norm and the angles; seats feed their token") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Dtype dtype : kDtypes) {
    for (const std::uint32_t hidden : {64U, 2048U, 4096U, 12288U}) {
      check_embed(device, EmbedCase(random, hidden, 128, dtype));
    }
    for (const std::uint32_t head_dim : {32U, 96U, 256U}) {
      check_embed(device, EmbedCase(random, 40, head_dim, dtype));
    }
  }
}

struct RopeShape {
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t block_size;
};

// One batch of rope_kv_cuda on random inputs, some of its tokens without a slot.
void check_rope_kv(const TestDevice& device, Random& random, const RopeShape& shape, Dtype dtype) {
  CAPTURE(shape.head_dim);
  CAPTURE(shape.num_heads);
  Device cpu(Isa::Portable, 1);
  const std::uint32_t tokens = random.integer(1, 70);
  const std::uint32_t num_blocks = 9;
  const std::size_t dim = shape.head_dim;
  const std::size_t row = (shape.num_heads + 2 * shape.num_kv_heads) * dim;
  const auto qkv = to_elements(random.normals(tokens * row), dtype);
  std::vector<float> angles = random.normals(tokens * dim);
  std::vector<std::uint32_t> slots(std::size_t{num_blocks} * shape.block_size);
  for (std::uint32_t i = 0; i < slots.size(); ++i) slots[i] = i;
  random.shuffle(slots);
  slots.resize(tokens);
  for (auto& slot : slots) {
    if (random.integer(0, 4) == 0) slot = kNoSlot;
  }

  auto expected = to_floats(qkv, dtype);
  rope(cpu.context(), {expected.data(), row, angles.data(), tokens,
                       shape.num_heads + shape.num_kv_heads, shape.head_dim});
  const std::size_t cache_size =
      std::size_t{num_blocks} * shape.block_size * shape.num_kv_heads * dim;
  const DeviceBuffer<std::uint16_t> qkv_cuda(qkv);
  const DeviceBuffer<float> angles_cuda(angles);
  const DeviceBuffer<std::uint32_t> slots_cuda(slots);
  const DeviceBuffer<std::uint16_t> k(cache_size);
  const DeviceBuffer<std::uint16_t> v(cache_size);
  rope_kv_cuda(
      device.op(),
      {k.data(), v.data(), dtype, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim},
      {qkv_cuda.data(), angles_cuda.data(), slots_cuda.data(), tokens, shape.num_heads});

  const auto turned = to_floats(qkv_cuda.to_host(), dtype);
  const auto keys = k.to_host();
  const auto key_values = to_floats(keys, dtype);
  const auto values = v.to_host();
  std::size_t written = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < shape.num_heads * dim; ++i) {
      REQUIRE(near(turned[t * row + i], expected[t * row + i], dtype));
    }
    if (slots[t] == kNoSlot) continue;
    written += shape.num_kv_heads * dim;
    for (std::size_t head = 0; head < shape.num_kv_heads; ++head) {
      for (std::size_t i = 0; i < dim; ++i) {
        const std::size_t block = slots[t] / shape.block_size;
        const std::size_t line =
            (block * shape.num_kv_heads + head) * shape.block_size + slots[t] % shape.block_size;
        const std::size_t key_at = t * row + (shape.num_heads + head) * dim + i;
        REQUIRE(near(key_values[line * dim + i], expected[key_at], dtype));
        REQUIRE(values[line * dim + i] == qkv[key_at + shape.num_kv_heads * dim]);
      }
    }
  }
  const auto poison = std::uint16_t{0xFFFF};
  CHECK(std::count(keys.begin(), keys.end(), poison) ==
        static_cast<std::ptrdiff_t>(cache_size - written));
  CHECK(std::count(values.begin(), values.end(), poison) ==
        static_cast<std::ptrdiff_t>(cache_size - written));
  CHECK(qkv_cuda.guards_are_whole());
  CHECK(k.guards_are_whole());
  CHECK(v.guards_are_whole());
}

TEST_CASE("rope_kv_cuda turns q in place, writes turned keys and values, none for no slot") {
  TestDevice device;
  Random random(fresh_seed());
  for (const Dtype dtype : kDtypes) {
    for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
      check_rope_kv(device, random, {32, 8, head_dim, 16}, dtype);
      check_rope_kv(device, random, {3, 1, head_dim, 128}, dtype);
      check_rope_kv(device, random, {7, 7, head_dim, 64}, dtype);
      check_rope_kv(device, random, {64, 8, head_dim, 32}, dtype);
    }
  }
}

TEST_CASE("silu_mul_cuda rounds what the CPU gives, the extremes too") {
  TestDevice device;
  Device cpu(Isa::Portable, 1);
  Random random(fresh_seed());
  for (const std::uint32_t size : {8U, 56U, 8192U, 11008U, 14336U}) {
    for (const Dtype dtype : kDtypes) {
      const std::uint32_t tokens = random.integer(1, 33);
      auto values = random.normals(std::size_t{tokens} * 2 * size);
      for (std::size_t i = 0; i < values.size(); i += 3) values[i] *= 20;
      values[0] = 200;
      values[1] = -200;
      values[2] = 0;
      const auto gate_up = to_elements(values, dtype);
      std::vector<float> expected(std::size_t{tokens} * size);
      silu_mul(cpu.context(), {to_floats(gate_up, dtype).data(), tokens, size, expected.data()});
      const DeviceBuffer<std::uint16_t> gate_up_cuda(gate_up);
      const DeviceBuffer<std::uint16_t> out(expected.size());
      silu_mul_cuda(device.op(), {gate_up_cuda.data(), tokens, size, dtype, out.data()});
      const auto got = to_floats(out.to_host(), dtype);
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(near(got[i], expected[i], dtype));
      CHECK(out.guards_are_whole());
    }
  }
}

TEST_CASE("shapes without a kernel are refused, and no tokens are no work") {
  const CudaOp op{nullptr, 1, false};
  CHECK_THROWS_AS(rms_norm_cuda(op, {.num_tokens = 1, .hidden_size = 12}), std::invalid_argument);
  CHECK_THROWS_AS(rms_norm_cuda(op, {.num_tokens = 1, .hidden_size = 8, .dtype = Dtype::F32}),
                  std::invalid_argument);
  CHECK_THROWS_AS(rope_kv_cuda(op, {.num_kv_heads = 1, .head_dim = 40}, {.num_tokens = 1}),
                  std::invalid_argument);
  CHECK_THROWS_AS(silu_mul_cuda(op, {.num_tokens = 1, .intermediate_size = 12}),
                  std::invalid_argument);
  rms_norm_cuda(op, {.hidden_size = 8});
  embed_cuda(op, {});
  rope_kv_cuda(op, {.head_dim = 64}, {});
  silu_mul_cuda(op, {.intermediate_size = 8});
}

}  // namespace
}  // namespace inferno::ops::cuda::test
