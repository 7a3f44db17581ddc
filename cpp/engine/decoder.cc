#include "engine/decoder.h"

namespace inferno::engine {
namespace {

Norm norm_of(const NormSpec& spec, const float* weight) { return {spec.kind, weight, spec.eps}; }

// A branch with a norm of its own ends in one that makes h, too.
InputFrom input_after(const Join& join, InputFrom branch) {
  return join.is_plain() ? branch : InputFrom{};
}

}  // namespace

Decoder::Decoder(const DecoderSpec& decoder, const Weights& all, const KvCache& kv)
    : spec(decoder), weights(all), last(norm_of(decoder.final_norm, all.final_norm)) {
  const auto before_attention = [&](std::uint32_t index) {
    return norm_of(spec.layers[index].pre_attention, all.layers[index].pre_attention_norm);
  };
  first = before_attention(0);
  layers.reserve(spec.layers.size());
  InputFrom input{};
  for (std::uint32_t i = 0; i < spec.num_layers(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const LayerWeights& own = all.layers[i];
    const bool is_last = i + 1 == spec.num_layers();
    Layer made{.attention = &layer.attention,
               .mlp = &layer.mlp,
               .weights = &own,
               .kv = &kv.layer(i),
               .pre_attention = before_attention(i),
               .attention_input = input};
    made.after_attention = {norm_of(layer.post_attention, own.post_attention_norm),
                            layer.residual_scale, norm_of(layer.pre_mlp, own.pre_mlp_norm)};
    made.mlp_input = input_after(made.after_attention, {.product = &own.o});
    made.after_mlp = {norm_of(layer.post_mlp, own.post_mlp_norm), layer.residual_scale,
                      is_last ? Norm{} : before_attention(i + 1), is_last};
    const bool dense = layer.mlp.kind == MlpKind::Dense;
    input = input_after(made.after_mlp,
                        dense ? InputFrom{.product = &own.down} : InputFrom{.experts = true});
    layers.push_back(made);
  }
}

}  // namespace inferno::engine
