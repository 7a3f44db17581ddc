// The plain decoder of the Llama family, all layers alike, for tests and benchmarks.
#pragma once

#include <cmath>
#include <optional>

#include "engine/spec/spec.h"

namespace inferno::engine {

// In the names of the checkpoint's config.json.
struct LlamaShape {
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_size = 0;
  std::uint32_t intermediate_size = 0;
  std::uint32_t num_layers = 0;
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  float rms_norm_eps = 1e-5F;
  float rope_theta = 10000;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // of q, k, v and o
  bool mlp_bias = false;
  ops::Dtype dtype = ops::Dtype::BF16;          // of weights, activations and KV
  std::optional<WeightFormat> linear_format{};  // of the layers' matrices, where it is another

  std::uint32_t q_size() const { return num_heads * head_dim; }
  std::uint32_t kv_size() const { return num_kv_heads * head_dim; }
};

inline DecoderSpec spec_of(const LlamaShape& shape) {
  const WeightFormat format = shape.dtype;
  const WeightFormat linear = shape.linear_format.value_or(format);
  const NormSpec norm{NormKind::Rms, shape.rms_norm_eps};
  RopeSpec rope;
  for (std::uint32_t i = 0; i < shape.head_dim / 2; ++i) {
    const double exponent = -2.0 * i / shape.head_dim;
    rope.inv_freq.push_back(static_cast<float>(std::pow(double{shape.rope_theta}, exponent)));
  }
  LayerSpec layer{.pre_attention = norm, .pre_mlp = norm};
  layer.attention = {.num_heads = shape.num_heads,
                     .num_kv_heads = shape.num_kv_heads,
                     .head_dim = shape.head_dim,
                     .qkv = {shape.attention_bias, linear},
                     .o = {shape.attention_bias, linear},
                     .rope = 0,
                     .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  layer.mlp = {.intermediate_size = shape.intermediate_size,
               .gate_up = {shape.mlp_bias, linear},
               .down = {shape.mlp_bias, linear}};
  return {.vocab_size = shape.vocab_size,
          .hidden_size = shape.hidden_size,
          .activation = shape.dtype,
          .kv = shape.dtype,
          .embedding = format,
          .tied_embeddings = shape.tie_word_embeddings,
          .head = {false, format},
          .final_norm = norm,
          .ropes = {rope},
          .layers = std::vector<LayerSpec>(shape.num_layers, layer)};
}

}  // namespace inferno::engine
