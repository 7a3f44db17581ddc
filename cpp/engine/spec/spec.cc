#include "engine/spec/spec.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

[[noreturn]] void refuse(const std::string& field, const std::string& expected) {
  throw Error(ErrorCode::kOther, field + ": expected " + expected);
}

void check_range(const std::string& field, std::uint64_t value, std::uint64_t max) {
  if (value >= 1 && value <= max) return;
  refuse(field, "1 to " + std::to_string(max) + ", got " + std::to_string(value));
}

void check_finite(const std::string& field, float value, float least) {
  if (std::isfinite(value) && value >= least) return;
  refuse(field, "a number of at least " + std::to_string(least) + ", got " + std::to_string(value));
}

void check_positive(const std::string& field, float value) {
  if (std::isfinite(value) && value > 0) return;
  refuse(field, "a number above 0, got " + std::to_string(value));
}

void check_format(const std::string& field, const WeightFormat& format) {
  if (!format.is_quantized()) {
    if (format.group == 0 && !format.offsets) return;
    refuse(field, "groups and offsets of codes only");
  }
  constexpr std::uint32_t kGroups[] = {0, 16, 32, 64, 128};
  if (std::ranges::find(kGroups, format.group) == std::end(kGroups)) {
    refuse(field + ".group", "0, 16, 32, 64 or 128, got " + std::to_string(format.group));
  }
  const bool may_have_offsets =
      format.kind == ops::WeightKind::Int8 || format.kind == ops::WeightKind::Int4;
  if (format.offsets && !may_have_offsets) refuse(field + ".offsets", "int8 or int4");
}

void check_no_order(const std::string& field, const LinearSpec& linear) {
  if (linear.ordered) refuse(field + ".ordered", "columns as the inputs");
}

void check_norm(const std::string& field, const NormSpec& norm) {
  if (norm.is_there()) check_finite(field + ".eps", norm.eps, 0);
}

void check_rope(const std::string& field, const RopeSpec& rope) {
  check_range(field + ".inv_freq (length)", rope.inv_freq.size(), 1U << 9);
  for (const float frequency : rope.inv_freq) check_finite(field + ".inv_freq", frequency, 0);
  check_finite(field + ".scale", rope.scale, 0);
  check_finite(field + ".query_beta", rope.query_beta, 0);
  check_range(field + ".query_original_positions", rope.query_original_positions, 1U << 28);
}

void check_attention(const std::string& at, const AttentionSpec& attention,
                     const std::vector<RopeSpec>& ropes) {
  check_range(at + "num_heads", attention.num_heads, 1U << 10);
  check_range(at + "num_kv_heads", attention.num_kv_heads, attention.num_heads);
  check_range(at + "head_dim", attention.head_dim, 1U << 10);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    refuse(at + "num_kv_heads", "a divisor of num_heads");
  }
  check_positive(at + "scale", attention.scale);
  check_positive(at + "k_scale", attention.k_scale);
  check_positive(at + "v_scale", attention.v_scale);
  check_finite(at + "softcap", attention.softcap, 0);
  check_finite(at + "qk_norm_eps", attention.qk_norm_eps, 0);
  check_format(at + "qkv.format", attention.qkv.format);
  check_format(at + "o.format", attention.o.format);
  check_format(at + "gate", attention.gate);
  if (attention.rope == kNoRope) return;
  if (attention.rope >= ropes.size()) {
    refuse(at + "rope", "less than the " + std::to_string(ropes.size()) + " ropes, got " +
                            std::to_string(attention.rope));
  }
  if (2 * ropes[attention.rope].inv_freq.size() > attention.head_dim) {
    refuse(at + "rope", "at most head_dim / 2 frequencies, got " +
                            std::to_string(ropes[attention.rope].inv_freq.size()));
  }
}

void check_mlp(const std::string& at, const MlpSpec& mlp) {
  check_range(at + "intermediate_size", mlp.intermediate_size, 1U << 20);
  check_finite(at + "activation.limit", mlp.activation.limit, 0);
  check_format(at + "gate_up.format", mlp.gate_up.format);
  check_format(at + "down.format", mlp.down.format);
  check_format(at + "router.format", mlp.router.format);
  const SharedExpertSpec& shared = mlp.shared;
  check_format(at + "shared.gate_up", shared.gate_up);
  check_format(at + "shared.down", shared.down);
  check_format(at + "shared.gate", shared.gate);
  const bool shares = shared.intermediate_size > 0 || shared.has_gate;
  if (mlp.kind == MlpKind::Dense) {
    if (shares) refuse(at + "shared", "experts beside it");
    return;
  }
  check_no_order(at + "gate_up", mlp.gate_up);
  check_no_order(at + "down", mlp.down);
  check_no_order(at + "router", mlp.router);
  check_range(at + "num_experts", mlp.num_experts, 1U << 10);
  check_range(at + "experts_per_token", mlp.experts_per_token, std::min(mlp.num_experts, 1U << 6));
  check_finite(at + "routed_scale", mlp.routed_scale, 0);
  if (mlp.score_correction && mlp.router_kind != ops::RouterKind::Sigmoid) {
    refuse(at + "score_correction", "a router of sigmoids");
  }
  if (shares) {
    check_range(at + "shared.intermediate_size", shared.intermediate_size, 1U << 20);
  }
}

void check_layer(const std::string& at, const LayerSpec& layer, const DecoderSpec& spec) {
  check_norm(at + "pre_attention", layer.pre_attention);
  check_norm(at + "post_attention", layer.post_attention);
  check_norm(at + "pre_mlp", layer.pre_mlp);
  check_norm(at + "post_mlp", layer.post_mlp);
  check_finite(at + "residual_scale", layer.residual_scale, 0);
  check_attention(at, layer.attention, spec.ropes);
  check_mlp(at, layer.mlp);
}

}  // namespace

LayerMaxima maxima_of(const DecoderSpec& spec) {
  LayerMaxima most;
  const auto count_order = [&](const LinearSpec& linear, std::uint32_t columns) {
    if (linear.ordered) most.ordered_columns = std::max(most.ordered_columns, columns);
  };
  for (const LayerSpec& layer : spec.layers) {
    most.q_size = std::max(most.q_size, layer.attention.q_size());
    most.qkv_size = std::max(most.qkv_size, layer.attention.qkv_size());
    if (layer.attention.output_gate) {
      most.output_gate_size = std::max(most.output_gate_size, layer.attention.q_size());
    }
    const MlpSpec& mlp = layer.mlp;
    most.intermediate_size = std::max(most.intermediate_size, mlp.dense_size());
    count_order(layer.attention.qkv, spec.hidden_size);
    count_order(layer.attention.o, layer.attention.q_size());
    count_order(mlp.gate_up, spec.hidden_size);
    count_order(mlp.down, mlp.intermediate_size);
    if (mlp.kind == MlpKind::Dense) continue;
    most.num_experts = std::max(most.num_experts, mlp.num_experts);
    most.experts_per_token = std::max(most.experts_per_token, mlp.experts_per_token);
    most.has_shared_gate = most.has_shared_gate || mlp.shared.has_gate;
  }
  return most;
}

const MlpSpec* first_experts(const DecoderSpec& spec) {
  for (const LayerSpec& layer : spec.layers) {
    if (layer.mlp.kind == MlpKind::Experts) return &layer.mlp;
  }
  return nullptr;
}

ops::ExpertsShape experts_shape(const DecoderSpec& spec, const MlpSpec& mlp) {
  return {mlp.num_experts, mlp.experts_per_token, spec.hidden_size, mlp.intermediate_size};
}

bool has_codes(const DecoderSpec& spec) {
  const auto layer_has = [](const LayerSpec& layer) {
    const MlpSpec& mlp = layer.mlp;
    const WeightFormat formats[] = {
        layer.attention.qkv.format, layer.attention.o.format, layer.attention.gate,
        mlp.gate_up.format,         mlp.down.format,          mlp.router.format,
        mlp.shared.gate_up,         mlp.shared.down,          mlp.shared.gate};
    return std::ranges::any_of(formats, &WeightFormat::is_quantized);
  };
  return spec.embedding.is_quantized() || spec.head.format.is_quantized() ||
         std::ranges::any_of(spec.layers, layer_has);
}

// The bounds are far above any model; their products stay below 2^63.
void check_spec(const DecoderSpec& spec) {
  check_range("vocab_size", spec.vocab_size, 1U << 22);  // the sampler's sums need it below 2^24
  check_range("hidden_size", spec.hidden_size, 1U << 18);
  check_range("num_layers", spec.layers.size(), 1U << 10);
  if (spec.ropes.size() > kMaxRopes) {
    refuse("ropes",
           "at most " + std::to_string(kMaxRopes) + ", got " + std::to_string(spec.ropes.size()));
  }
  if (spec.activation == ops::Dtype::Fp8) refuse("activation", "f32, f16 or bf16, got fp8");
  check_format("embedding", spec.embedding);
  check_format("head.format", spec.head.format);
  check_no_order("head", spec.head);
  check_finite("embedding_scale", spec.embedding_scale, 0);
  check_finite("logit_scale", spec.logit_scale, 0);
  check_finite("logit_softcap", spec.logit_softcap, 0);
  check_norm("final_norm", spec.final_norm);
  if (!spec.final_norm.is_there()) refuse("final_norm", "a norm");
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    check_rope("ropes[" + std::to_string(i) + "]", spec.ropes[i]);
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    check_layer("layers[" + std::to_string(i) + "].", spec.layers[i], spec);
  }
}

void check_limits(const ModelLimits& limits, const DecoderSpec& spec) {
  check_range("block_size", limits.block_size, 1U << 12);
  check_range("max_batch_size", limits.max_batch_size, 1U << 14);
  check_range("max_step_tokens", limits.max_step_tokens, 1U << 20);
  check_range("max_seq_len", limits.max_seq_len, 1U << 24);
  for (const std::uint32_t id : limits.end_token_ids) {
    if (id >= spec.vocab_size) {
      refuse("end_token_ids", "ids below vocab_size, got " + std::to_string(id));
    }
  }
}

}  // namespace inferno::engine
