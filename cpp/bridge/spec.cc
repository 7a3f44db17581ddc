// Field by field; no logic.
#include "bridge/spec.h"

#include "inferno-node/src/bridge/spec.rs.h"

namespace inferno {
namespace {

engine::NormSpec to_engine(const NormSpec& norm) { return {norm.kind, norm.eps}; }

engine::LinearSpec to_engine(const LinearSpec& linear) {
  return {linear.bias, to_engine(linear.format), linear.ordered};
}

engine::RopeSpec to_engine(const RopeSpec& rope) {
  return {.inv_freq = {rope.inv_freq.begin(), rope.inv_freq.end()},
          .scale = rope.scale,
          .interleaved = rope.interleaved,
          .query_beta = rope.query_beta,
          .query_original_positions = rope.query_original_positions};
}

engine::AttentionSpec to_engine(const AttentionSpec& attention) {
  return {.num_heads = attention.num_heads,
          .num_kv_heads = attention.num_kv_heads,
          .head_dim = attention.head_dim,
          .qkv = to_engine(attention.qkv),
          .o = to_engine(attention.o),
          .qk_norm = attention.qk_norm,
          .qk_norm_eps = attention.qk_norm_eps,
          .rope = attention.rope,
          .window = attention.window,
          .scale = attention.scale,
          .softcap = attention.softcap,
          .sinks = attention.sinks,
          .output_gate = attention.output_gate,
          .gate = to_engine(attention.gate),
          .k_scale = attention.k_scale,
          .v_scale = attention.v_scale};
}

engine::SharedExpertSpec to_engine(const SharedExpertSpec& shared) {
  return {.intermediate_size = shared.intermediate_size,
          .gate_up = to_engine(shared.gate_up),
          .down = to_engine(shared.down),
          .has_gate = shared.has_gate,
          .gate = to_engine(shared.gate)};
}

engine::MlpSpec to_engine(const MlpSpec& mlp) {
  return {.kind = mlp.kind,
          .intermediate_size = mlp.intermediate_size,
          .activation = {mlp.activation.kind, mlp.activation.alpha, mlp.activation.limit},
          .gate_up = to_engine(mlp.gate_up),
          .down = to_engine(mlp.down),
          .num_experts = mlp.num_experts,
          .experts_per_token = mlp.experts_per_token,
          .router = to_engine(mlp.router),
          .router_kind = mlp.router_kind,
          .score_correction = mlp.score_correction,
          .renormalise = mlp.renormalise,
          .routed_scale = mlp.routed_scale,
          .shared = to_engine(mlp.shared)};
}

engine::LayerSpec to_engine(const LayerSpec& layer) {
  return {.pre_attention = to_engine(layer.pre_attention),
          .post_attention = to_engine(layer.post_attention),
          .pre_mlp = to_engine(layer.pre_mlp),
          .post_mlp = to_engine(layer.post_mlp),
          .attention = to_engine(layer.attention),
          .mlp = to_engine(layer.mlp),
          .residual_scale = layer.residual_scale};
}

}  // namespace

ops::WeightFormat to_engine(const WeightFormat& format) {
  return {format.kind, format.group, format.offsets};
}

engine::DecoderSpec to_engine(const DecoderSpec& spec) {
  engine::DecoderSpec decoder{.vocab_size = spec.vocab_size,
                              .hidden_size = spec.hidden_size,
                              .activation = spec.activation,
                              .kv = spec.kv,
                              .embedding = to_engine(spec.embedding),
                              .embedding_scale = spec.embedding_scale,
                              .tied_embeddings = spec.tied_embeddings,
                              .head = to_engine(spec.head),
                              .final_norm = to_engine(spec.final_norm),
                              .logit_scale = spec.logit_scale,
                              .logit_softcap = spec.logit_softcap,
                              .ropes = {},
                              .layers = {}};
  for (const RopeSpec& rope : spec.ropes) decoder.ropes.push_back(to_engine(rope));
  for (const LayerSpec& layer : spec.layers) decoder.layers.push_back(to_engine(layer));
  return decoder;
}

}  // namespace inferno
