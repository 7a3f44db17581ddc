// Goal: weights are exactly the checkpoint's, from any order of tensors, or an error names what is
// wrong. Method: small shapes, tensors counted up so that each element tells where it belongs;
// statistics for random ones.
#include "engine/weights.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>

#include "engine/cpu/cpu_backend.h"
#include "engine/error.h"
#include "engine/test_model.h"

namespace inferno::engine {
namespace {

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kOther);
    return error.what();
  }
  return "accepted";
}

struct Fixture {
  CpuBackend device{{.num_threads = 2, .pool_bytes = 32 << 20}};

  // Sets a tensor whose elements are first, first + 1, … in float.
  static void set(Weights& weights, const std::string& name, std::vector<std::uint64_t> shape,
                  float first) {
    std::uint64_t size = 1;
    for (auto d : shape) size *= d;
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = first + static_cast<float>(i);
    weights.set(name, {ops::Dtype::F32, shape, std::as_bytes(std::span(values))});
  }
};

std::vector<float> row(const ops::PackedWeights& matrix, std::uint32_t index) {
  std::vector<float> values(matrix.shape.num_columns);
  ops::unpack_row(matrix, index, values.data());
  return values;
}

TEST_CASE("parts of a fused matrix and bias find their rows, in any order") {
  Fixture f;
  ModelShape shape = test::small_shape(ops::Dtype::F32);
  shape.attention_bias = true;
  Weights weights(f.device, shape);
  const std::string p = "model.layers.1.self_attn.";
  Fixture::set(weights, p + "v_proj.weight", {24, 72}, 3e5F);
  Fixture::set(weights, p + "q_proj.weight", {72, 72}, 1e5F);
  Fixture::set(weights, p + "k_proj.weight", {24, 72}, 2e5F);
  Fixture::set(weights, p + "k_proj.bias", {24}, 200);
  Fixture::set(weights, p + "v_proj.bias", {24}, 300);
  Fixture::set(weights, p + "q_proj.bias", {72}, 100);
  const Linear& qkv = weights.layers[1].qkv;
  CHECK(qkv.weight.shape.num_rows == 120);
  CHECK(row(qkv.weight, 0)[0] == 1e5F);
  CHECK(row(qkv.weight, 71)[71] == 1e5F + 72 * 72 - 1);
  CHECK(row(qkv.weight, 72)[0] == 2e5F);
  CHECK(row(qkv.weight, 95)[5] == 2e5F + 23 * 72 + 5);
  CHECK(row(qkv.weight, 96)[0] == 3e5F);
  CHECK(row(qkv.weight, 119)[71] == 3e5F + 24 * 72 - 1);
  CHECK(qkv.bias[71] == 171);
  CHECK(qkv.bias[72] == 200);
  CHECK(qkv.bias[119] == 323);
}

TEST_CASE("what is missing is listed") {
  Fixture f;
  ModelShape shape = test::small_shape(ops::Dtype::BF16);
  shape.num_layers = 1;
  Weights weights(f.device, shape);
  CHECK(error_of([&] { weights.check_complete(); }) ==
        "other: 12 tensors are missing: model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight, model.layers.0.self_attn.q_proj.weight, "
        "model.layers.0.self_attn.k_proj.weight, model.layers.0.self_attn.v_proj.weight, "
        "model.layers.0.self_attn.o_proj.weight, model.layers.0.post_attention_layernorm.weight, "
        "model.layers.0.mlp.gate_proj.weight, …");
  weights.fill_random(1);
  weights.check_complete();
}

TEST_CASE("tied embeddings are the LM head, without a copy") {
  Fixture f;
  ModelShape shape = test::small_shape(ops::Dtype::F16);
  const std::uint64_t untied = Weights::bytes_needed(f.device.sizes(), shape);
  shape.tie_word_embeddings = true;
  CHECK(Weights::bytes_needed(f.device.sizes(), shape) < untied);
  Weights weights(f.device, shape);
  CHECK(weights.lm_head.weight.data == weights.embedding.data);
  Fixture::set(weights, "model.embed_tokens.weight", {211, 72}, 0);
  // Some checkpoints have it all the same; it is checked and dropped.
  Fixture::set(weights, "lm_head.weight", {211, 72}, 5);
  CHECK(row(weights.lm_head.weight, 0)[3] == 3);
  CHECK(error_of([&] { weights.check_complete(); }).find("lm_head") == std::string::npos);
}

TEST_CASE("refuses tensors that are not the model's, by name") {
  Fixture f;
  Weights weights(f.device, test::small_shape(ops::Dtype::F32));
  const auto set = [&](const std::string& name, std::vector<std::uint64_t> shape) {
    return error_of([&] { Fixture::set(weights, name, std::move(shape), 0); });
  };
  CHECK(set("model.layers.3.mlp.up_proj.weight", {108, 72}) ==
        "other: tensor model.layers.3.mlp.up_proj.weight: not part of this model");
  CHECK(set("model.layers.0.mlp.up_proj.bias", {108}).ends_with("not part of this model"));
  CHECK(set("", {1}).ends_with("not part of this model"));
  CHECK(set("model.norm.weight", {71}) ==
        "other: tensor model.norm.weight: expected shape [72], got [71]");
  CHECK(set("model.norm.weight", {1, 72}).ends_with("expected shape [72], got [1, 72]"));
  CHECK(set("lm_head.weight", {72, 211}).ends_with("expected shape [211, 72], got [72, 211]"));
  CHECK(set("lm_head.weight", {}).ends_with("got []"));
  CHECK(set("model.norm.weight", {72}) == "accepted");
  CHECK(set("model.norm.weight", {72}) == "other: tensor model.norm.weight: given twice");
  CHECK(set("model.layers.0.self_attn.rotary_emb.inv_freq", {6}) == "accepted");
  const std::uint64_t shape[] = {211, 72};
  const std::vector<std::byte> data(211 * 72 * 2);
  CHECK(error_of([&] {
          weights.set("lm_head.weight", {ops::Dtype::F32, shape, data});
        }).ends_with("expected 60768 bytes of f32, got 30384"));
  CHECK(error_of([&] {
          weights.set("lm_head.weight", {ops::Dtype::F16, shape, data});
        }) == "accepted");
}

TEST_CASE("random weights are normal, seeded, and the same on any number of threads") {
  Fixture f;
  ModelShape shape = test::small_shape(ops::Dtype::F32);
  shape.num_layers = 1;
  shape.vocab_size = 2050;  // more than one batch of rows
  Weights weights(f.device, shape);
  weights.fill_random(9);
  double sum = 0;
  double squares = 0;
  double extreme = 0;
  std::set<float> first_column;
  for (std::uint32_t r = 0; r < 2050; ++r) {
    const auto values = row(weights.embedding, r);
    first_column.insert(values[0]);
    for (const float x : values) {
      sum += x;
      squares += double{x} * x;
      extreme = std::max(extreme, std::abs(double{x}));
    }
  }
  const double count = 2050 * 72;
  CHECK(std::abs(sum / count) < 3e-4);
  CHECK(std::sqrt(squares / count) == doctest::Approx(0.02).epsilon(0.01));
  CHECK(extreme > 0.06);
  CHECK(extreme < 0.08);
  CHECK(first_column.size() > 1000);
  CHECK(weights.layers[0].input_norm[71] == 1);

  CpuBackend alone{{.num_threads = 1, .pool_bytes = 32 << 20}};
  Weights again(alone, shape);
  again.fill_random(9);
  Weights other(alone, shape);
  other.fill_random(10);
  int differing = 0;
  for (std::uint32_t r = 0; r < 72; ++r) {
    CHECK(row(again.layers[0].o.weight, r) == row(weights.layers[0].o.weight, r));
    differing += row(other.layers[0].o.weight, r) != row(weights.layers[0].o.weight, r) ? 1 : 0;
  }
  CHECK(differing == 72);
}

}  // namespace
}  // namespace inferno::engine
