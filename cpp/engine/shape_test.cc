// Goal: a shape or limits that make no sense are refused by name. Method: a good one, spoilt in one
// field at a time.
#include "engine/shape.h"

#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <string>

#include "engine/error.h"
#include "engine/test_model.h"

namespace inferno::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::string error_of(const std::function<void(ModelShape&, ModelLimits&)>& spoil) {
  ModelShape shape = test::small_shape(ops::Dtype::F32);
  ModelLimits limits = test::small_limits();
  shape.rope_scaling = ops::RopeScaling::Llama3;
  shape.rope_original_max_positions = 32;
  spoil(shape, limits);
  try {
    check_shape(shape);
    check_limits(limits, shape);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kOther);
    return error.what();
  }
  return "accepted";
}

TEST_CASE("accepts every kind of rope") {
  for (const auto scaling :
       {ops::RopeScaling::None, ops::RopeScaling::Linear, ops::RopeScaling::Llama3}) {
    CHECK(error_of([&](auto& s, auto&) { s.rope_scaling = scaling; }) == "accepted");
  }
  CHECK(error_of([&](auto& s, auto&) {
          s.rope_scaling = ops::RopeScaling::Linear;
          s.rope_low_freq_factor = 0;
        }) == "accepted");
}

TEST_CASE("names the field that is out of range") {
  const std::vector<std::pair<std::string, std::function<void(ModelShape&, ModelLimits&)>>> cases =
      {
          {"vocab_size", [](auto& s, auto&) { s.vocab_size = 0; }},
          {"hidden_size", [](auto& s, auto&) { s.hidden_size = 1 << 30; }},
          {"intermediate_size", [](auto& s, auto&) { s.intermediate_size = 0; }},
          {"num_layers", [](auto& s, auto&) { s.num_layers = 0; }},
          {"num_heads", [](auto& s, auto&) { s.num_heads = 0; }},
          {"num_kv_heads", [](auto& s, auto&) { s.num_kv_heads = 0; }},
          {"num_kv_heads", [](auto& s, auto&) { s.num_kv_heads = 4; }},
          {"num_kv_heads", [](auto& s, auto&) { s.num_kv_heads = 12; }},
          {"head_dim", [](auto& s, auto&) { s.head_dim = 0; }},
          {"head_dim", [](auto& s, auto&) { s.head_dim = 13; }},
          {"rms_norm_eps", [](auto& s, auto&) { s.rms_norm_eps = -1; }},
          {"rms_norm_eps", [](auto& s, auto&) { s.rms_norm_eps = kNan; }},
          {"rope_theta", [](auto& s, auto&) { s.rope_theta = 0; }},
          {"rope_factor", [](auto& s, auto&) { s.rope_factor = 0.5F; }},
          {"rope_factor", [](auto& s, auto&) { s.rope_factor = kInf; }},
          {"rope_low_freq_factor", [](auto& s, auto&) { s.rope_low_freq_factor = 0; }},
          {"rope_high_freq_factor", [](auto& s, auto&) { s.rope_high_freq_factor = 1; }},
          {"rope_original_max_positions",
           [](auto& s, auto&) { s.rope_original_max_positions = 0; }},
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
    CHECK_MESSAGE(error.starts_with("other: " + field + ": expected"), error);
  }
}

}  // namespace
}  // namespace inferno::engine
