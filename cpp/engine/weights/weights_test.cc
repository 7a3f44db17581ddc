// Goal: weights are exactly the checkpoint's, from any order of tensors, or an error names what is
// wrong. Method: small shapes, tensors counted up so that each element tells where it belongs;
// statistics for random ones.
#include "engine/weights/weights.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>

#include "engine/base/error.h"
#include "engine/cpu/cpu_backend.h"
#include "engine/testing/test_model.h"

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
  static void set(Weights& weights, const TensorSlot& slot, std::vector<std::uint64_t> shape,
                  float first) {
    std::uint64_t size = 1;
    for (auto d : shape) size *= d;
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = first + static_cast<float>(i);
    weights.set(slot, {ops::Dtype::F32, shape, std::as_bytes(std::span(values))});
  }
};

std::vector<float> row(const ops::PackedWeights& matrix, std::uint32_t index) {
  std::vector<float> values(matrix.shape.num_columns);
  ops::unpack_row(matrix, index, values.data());
  return values;
}

TEST_CASE("parts of a fused matrix and bias find their rows, in any order") {
  Fixture f;
  LlamaShape shape = test::small_shape(ops::Dtype::F32);
  shape.attention_bias = true;
  const DecoderSpec spec = spec_of(shape);
  Weights weights(f.device, spec);
  const auto part = [](TensorPart part, std::uint32_t first_row) {
    return TensorSlot{part, 1, 0, first_row};
  };
  Fixture::set(weights, part(TensorPart::Qkv, 96), {24, 72}, 3e5F);
  Fixture::set(weights, part(TensorPart::Qkv, 0), {72, 72}, 1e5F);
  Fixture::set(weights, part(TensorPart::Qkv, 72), {24, 72}, 2e5F);
  Fixture::set(weights, part(TensorPart::QkvBias, 72), {24}, 200);
  Fixture::set(weights, part(TensorPart::QkvBias, 96), {24}, 300);
  Fixture::set(weights, part(TensorPart::QkvBias, 0), {72}, 100);
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

TEST_CASE("an order of columns comes as a whole, and names each of them once") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  spec.layers[2].attention.o.ordered = true;
  Weights weights(f.device, spec);
  CHECK(weights.layers[1].o.order == nullptr);
  const auto set = [&](std::vector<float> order) {
    const std::uint64_t shape[] = {order.size()};
    weights.set({TensorPart::OOrder, 2}, {ops::Dtype::F32, shape, std::as_bytes(std::span(order))});
  };
  std::vector<float> order(72);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<float>(71 - i);
  const auto with = [&](std::size_t at, float value) {
    std::vector<float> changed = order;
    changed[at] = value;
    return changed;
  };
  for (const float wrong : {72.0F, -1.0F, 0.5F, 3.0F, std::nanf("")}) {
    CHECK(error_of([&] {
            set(with(0, wrong));
          }).starts_with("other: layers[2].o_order: expected each"));
  }
  CHECK(error_of([&] {
          set({order.begin(), order.begin() + 8});
        }) == "other: layers[2].o_order: a part of an order");
  set(order);
  CHECK(weights.layers[2].o.order[0] == 71);
  CHECK(weights.layers[2].o.order[71] == 0);
  weights.fill_random(1);
  CHECK(weights.layers[2].o.order[71] == 71);
}

TEST_CASE("experts lie one after the other, each with its rows and its bias") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  MlpSpec& mlp = spec.layers[2].mlp;
  mlp.kind = MlpKind::Experts;
  mlp.num_experts = 3;
  mlp.router = {true, ops::Dtype::F32};
  mlp.down.bias = true;
  Weights weights(f.device, spec);
  Fixture::set(weights, {TensorPart::GateUp, 2, 1}, {216, 72}, 0);
  Fixture::set(weights, {TensorPart::Down, 2, 2}, {72, 108}, 5);
  Fixture::set(weights, {TensorPart::DownBias, 2, 2}, {72}, 7);
  Fixture::set(weights, {TensorPart::Router, 2}, {3, 72}, 0);
  const ops::ExpertMatrix& gate_up = weights.layers[2].expert_gate_up;
  const ops::PackedWeights second{gate_up.data + gate_up.expert_stride, gate_up.shape};
  CHECK(row(second, 215)[71] == 216 * 72 - 1);
  const ops::ExpertMatrix& down = weights.layers[2].expert_down;
  CHECK(row({down.data + 2 * down.expert_stride, down.shape}, 0)[1] == 6);
  CHECK(down.bias[2 * 72 + 71] == 78);
  CHECK(weights.layers[1].expert_gate_up.data == nullptr);
  CHECK(error_of([&] {
          Fixture::set(weights, {TensorPart::Down, 2, 3}, {72, 108}, 0);
        }) == "other: layers[2].down[3]: not part of this model");
}

TEST_CASE("gates, a score correction and a shared expert have slots of their own") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  spec.layers[1].attention.output_gate = true;
  spec.layers[1].attention.gate = ops::Dtype::F32;
  MlpSpec& mlp = spec.layers[1].mlp;
  mlp.kind = MlpKind::Experts;
  mlp.num_experts = 3;
  mlp.router_kind = ops::RouterKind::Sigmoid;
  mlp.score_correction = true;
  mlp.shared = {20, ops::Dtype::F32, ops::Dtype::F32, true, ops::Dtype::F32};
  Weights weights(f.device, spec);
  const LayerWeights& layer = weights.layers[1];
  Fixture::set(weights, {TensorPart::OutputGate, 1}, {72, 72}, 3);
  Fixture::set(weights, {TensorPart::ScoreCorrection, 1}, {3}, 5);
  Fixture::set(weights, {TensorPart::SharedGateUp, 1, 0, 20}, {20, 72}, 1e5F);
  Fixture::set(weights, {TensorPart::SharedGateUp, 1}, {20, 72}, 0);
  Fixture::set(weights, {TensorPart::SharedDown, 1}, {72, 20}, 7);
  Fixture::set(weights, {TensorPart::SharedGate, 1}, {1, 72}, 9);
  CHECK(row(layer.output_gate.weight, 71)[71] == 3 + 72 * 72 - 1);
  CHECK(layer.score_correction[2] == 7);
  CHECK(row(layer.gate_up.weight, 19)[71] == 20 * 72 - 1);
  CHECK(row(layer.gate_up.weight, 20)[0] == 1e5F);
  CHECK(row(layer.down.weight, 1)[0] == 27);
  CHECK(row(layer.shared_gate.weight, 0)[71] == 80);
  CHECK(weights.layers[0].score_correction == nullptr);
  const std::string missing = error_of([&] { weights.check_complete(); });
  CHECK(missing.find("shared") == std::string::npos);
  CHECK(error_of([&] {
          Fixture::set(weights, {TensorPart::SharedDown, 0}, {72, 20}, 0);
        }) == "other: layers[0].shared_down: not part of this model");
}

TEST_CASE("what is missing is listed") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::BF16);
  spec.layers.resize(1);
  Weights weights(f.device, spec);
  CHECK(error_of([&] { weights.check_complete(); }) ==
        "other: 9 parts are not complete: embedding, final_norm, head, "
        "layers[0].pre_attention_norm, layers[0].qkv, layers[0].o, layers[0].pre_mlp_norm, "
        "layers[0].gate_up, …");
  weights.fill_random(1);
  weights.check_complete();
}

TEST_CASE("tied embeddings are the head, without a copy") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::F16);
  const std::uint64_t untied = Weights::bytes_needed(f.device.sizes(), spec);
  spec.tied_embeddings = true;
  CHECK(Weights::bytes_needed(f.device.sizes(), spec) < untied);
  Weights weights(f.device, spec);
  CHECK(weights.head.weight.data == weights.embedding.data);
  Fixture::set(weights, {TensorPart::Embedding}, {211, 72}, 0);
  CHECK(row(weights.head.weight, 0)[3] == 3);
  CHECK(error_of([&] { weights.check_complete(); }).find("head") == std::string::npos);
}

TEST_CASE("refuses what does not fit its slot, by name") {
  Fixture f;
  const DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  Weights weights(f.device, spec);
  const auto set = [&](const TensorSlot& slot, std::vector<std::uint64_t> shape) {
    return error_of([&] { Fixture::set(weights, slot, std::move(shape), 0); });
  };
  CHECK(set({TensorPart::GateUp, 3}, {108, 72}) ==
        "other: layers[3].gate_up: not part of this model");
  CHECK(set({TensorPart::GateUpBias}, {108}).ends_with("not part of this model"));
  CHECK(set({static_cast<TensorPart>(200)}, {1}).ends_with("unknown: not part of this model"));
  CHECK(set({TensorPart::FinalNorm}, {73}) ==
        "other: final_norm: expected rows of [72] from 0, got [73]");
  CHECK(set({TensorPart::FinalNorm}, {1, 72}).ends_with("got [1, 72]"));
  CHECK(set({TensorPart::FinalNorm, 0, 0, 1}, {72}).ends_with("from 1, got [72]"));
  CHECK(set({TensorPart::Head}, {72, 211}).ends_with("rows of [211, 72] from 0, got [72, 211]"));
  CHECK(set({TensorPart::Head}, {}).ends_with("got []"));
  CHECK(set({TensorPart::Head, 0, 0, 0xFFFFFFFF}, {2, 72}).ends_with("got [2, 72]"));
  CHECK(set({TensorPart::FinalNorm}, {72}) == "accepted");
  CHECK(set({TensorPart::FinalNorm}, {72}) == "other: final_norm: given twice");
  const std::uint64_t shape[] = {211, 72};
  const std::vector<std::byte> data(211 * 72 * 2);
  CHECK(error_of([&] {
          weights.set({TensorPart::Head}, {ops::Dtype::F32, shape, data});
        }).ends_with("expected 60768 bytes of f32, got 30384"));
  CHECK(error_of([&] {
          weights.set({TensorPart::Head}, {ops::Dtype::F16, shape, data});
        }) == "accepted");
}

TEST_CASE("random weights are normal, seeded, and the same on any number of threads") {
  Fixture f;
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  spec.layers.resize(1);
  spec.vocab_size = 2050;  // more than one batch of rows
  Weights weights(f.device, spec);
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
  CHECK(weights.layers[0].pre_attention_norm[71] == doctest::Approx(1).epsilon(0.08));

  CpuBackend alone{{.num_threads = 1, .pool_bytes = 32 << 20}};
  Weights again(alone, spec);
  again.fill_random(9);
  Weights other(alone, spec);
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
