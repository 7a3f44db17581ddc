// Goal: a spec or limits that make no sense are refused by name. Method: a good one, spoilt in one
// field at a time.
#include "engine/spec/spec.h"

#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/testing/test_model.h"

namespace inferno::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

using Spoil = std::function<void(DecoderSpec&, ModelLimits&)>;

std::string error_of(const Spoil& spoil) {
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  ModelLimits limits = test::small_limits();
  spoil(spec, limits);
  try {
    check_spec(spec);
    check_limits(limits, spec);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kOther);
    return error.what();
  }
  return "accepted";
}

TEST_CASE("accepts layers that differ, and layers without rope") {
  CHECK(error_of([](auto& s, auto&) {
          s.layers[1].attention.rope = kNoRope;
          s.layers[1].attention.head_dim = 13;
          s.layers[2].attention.window = 8;
          s.layers[2].mlp.kind = MlpKind::Experts;
          s.layers[2].mlp.num_experts = 4;
          s.layers[2].mlp.experts_per_token = 4;
        }) == "accepted");
}

TEST_CASE("accepts gates, a router of sigmoids and a shared expert") {
  CHECK(error_of([](auto& s, auto&) {
          s.layers[1].attention.output_gate = true;
          MlpSpec& mlp = s.layers[1].mlp;
          mlp.kind = MlpKind::Experts;
          mlp.num_experts = 4;
          mlp.router_kind = ops::RouterKind::Sigmoid;
          mlp.score_correction = true;
          mlp.shared = {.intermediate_size = 24, .has_gate = true};
        }) == "accepted");
}

TEST_CASE("what layers share is the largest of each") {
  DecoderSpec spec = test::small_spec(ops::Dtype::F32);
  CHECK(maxima_of(spec).output_gate_size == 0);
  CHECK_FALSE(maxima_of(spec).has_shared_gate);
  spec.layers[1].attention.output_gate = true;
  for (LayerSpec& layer : spec.layers) layer.mlp.kind = MlpKind::Experts;
  spec.layers[1].mlp.shared = {.intermediate_size = 24, .has_gate = true};
  spec.layers[2].mlp.shared.intermediate_size = 40;
  CHECK(maxima_of(spec).output_gate_size == 72);
  CHECK(maxima_of(spec).intermediate_size == 40);
  CHECK(maxima_of(spec).has_shared_gate);
}

TEST_CASE("names the field that is out of range") {
  const std::vector<std::pair<std::string, Spoil>> cases = {
      {"vocab_size", [](auto& s, auto&) { s.vocab_size = 0; }},
      {"hidden_size", [](auto& s, auto&) { s.hidden_size = 1 << 30; }},
      {"num_layers", [](auto& s, auto&) { s.layers.clear(); }},
      {"embedding_scale", [](auto& s, auto&) { s.embedding_scale = kNan; }},
      {"logit_softcap", [](auto& s, auto&) { s.logit_softcap = -1; }},
      {"final_norm", [](auto& s, auto&) { s.final_norm.kind = NormKind::None; }},
      {"final_norm.eps", [](auto& s, auto&) { s.final_norm.eps = kNan; }},
      {"ropes: expected at most 4", [](auto& s, auto&) { s.ropes.resize(5, s.ropes[0]); }},
      {"ropes[0].inv_freq", [](auto& s, auto&) { s.ropes[0].inv_freq.clear(); }},
      {"ropes[0].inv_freq", [](auto& s, auto&) { s.ropes[0].inv_freq[1] = kInf; }},
      {"ropes[0].scale", [](auto& s, auto&) { s.ropes[0].scale = kNan; }},
      {"ropes[0].query_original_positions",
       [](auto& s, auto&) { s.ropes[0].query_original_positions = 0; }},
      {"layers[1].intermediate_size",
       [](auto& s, auto&) { s.layers[1].mlp.intermediate_size = 0; }},
      {"layers[1].num_heads", [](auto& s, auto&) { s.layers[1].attention.num_heads = 0; }},
      {"layers[1].num_kv_heads", [](auto& s, auto&) { s.layers[1].attention.num_kv_heads = 0; }},
      {"layers[1].num_kv_heads", [](auto& s, auto&) { s.layers[1].attention.num_kv_heads = 4; }},
      {"layers[1].num_kv_heads", [](auto& s, auto&) { s.layers[1].attention.num_kv_heads = 12; }},
      {"layers[1].head_dim", [](auto& s, auto&) { s.layers[1].attention.head_dim = 0; }},
      {"layers[1].rope", [](auto& s, auto&) { s.layers[1].attention.head_dim = 10; }},
      {"layers[1].rope", [](auto& s, auto&) { s.layers[1].attention.rope = 1; }},
      {"layers[1].scale", [](auto& s, auto&) { s.layers[1].attention.scale = kInf; }},
      {"layers[1].scale", [](auto& s, auto&) { s.layers[1].attention.scale = 0; }},
      {"layers[1].pre_mlp.eps", [](auto& s, auto&) { s.layers[1].pre_mlp.eps = -1; }},
      {"layers[1].residual_scale", [](auto& s, auto&) { s.layers[1].residual_scale = kNan; }},
      {"layers[1].num_experts",
       [](auto& s, auto&) {
         s.layers[1].mlp.kind = MlpKind::Experts;
         s.layers[1].mlp.num_experts = 0;
       }},
      {"layers[1].experts_per_token",
       [](auto& s, auto&) {
         s.layers[1].mlp.kind = MlpKind::Experts;
         s.layers[1].mlp.experts_per_token = 2;
       }},
      {"layers[1].score_correction",
       [](auto& s, auto&) {
         s.layers[1].mlp.kind = MlpKind::Experts;
         s.layers[1].mlp.score_correction = true;
       }},
      {"layers[1].shared.intermediate_size",
       [](auto& s, auto&) {
         s.layers[1].mlp.kind = MlpKind::Experts;
         s.layers[1].mlp.shared.has_gate = true;
       }},
      {"layers[1].shared.intermediate_size",
       [](auto& s, auto&) {
         s.layers[1].mlp.kind = MlpKind::Experts;
         s.layers[1].mlp.shared.intermediate_size = 1 << 30;
       }},
      {"layers[1].shared: expected experts",
       [](auto& s, auto&) { s.layers[1].mlp.shared.intermediate_size = 24; }},
      {"block_size", [](auto&, auto& l) { l.block_size = 0; }},
      {"max_batch_size", [](auto&, auto& l) { l.max_batch_size = 0; }},
      {"max_step_tokens", [](auto&, auto& l) { l.max_step_tokens = 1 << 30; }},
      {"max_seq_len", [](auto&, auto& l) { l.max_seq_len = 0; }},
      {"end_token_ids",
       [](auto&, auto& l) {
         l.end_token_ids = {0, 211};
       }},
  };
  for (const auto& [field, spoil] : cases) {
    const std::string error = error_of(spoil);
    CHECK_MESSAGE(error.starts_with("other: " + field), error);
  }
}

TEST_CASE("fp8 is a type of KV only, by scales above 0") {
  const std::vector<std::pair<std::string, Spoil>> cases = {
      {"activation", [](auto& s, auto&) { s.activation = ops::Dtype::Fp8; }},
      {"layers[1].k_scale", [](auto& s, auto&) { s.layers[1].attention.k_scale = 0; }},
      {"layers[1].v_scale", [](auto& s, auto&) { s.layers[1].attention.v_scale = kInf; }},
  };
  for (const auto& [field, spoil] : cases) {
    const std::string error = error_of(spoil);
    CHECK_MESSAGE(error.starts_with("other: " + field), error);
  }
  CHECK(error_of([](auto& s, auto&) { s.kv = ops::Dtype::Fp8; }) == "accepted");
}

}  // namespace
}  // namespace inferno::engine
