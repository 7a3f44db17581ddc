// A random checkpoint and the Llama decoder over it in double, with no cache, no batch and no
// packing: what the forward pass is held against. With what some families add: an output gate,
// experts, an expert that all tokens share.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/spec/llama_spec.h"
#include "ops/base/dtype.h"

namespace inferno::engine::test {

using Matrix = std::vector<double>;

// What a decoder has beside Llama's.
struct Parts {
  bool output_gate = false;
  bool post_norms = false;
  bool ordered = false;  // columns of the layers' matrices in orders of their own
  float residual_scale = 1;
  // In all layers but the first; kind Dense: in none.
  MlpSpec experts{};

  bool has_experts(std::uint32_t layer) const {
    return experts.kind == MlpKind::Experts && layer > 0;
  }
};

// Checkpoint tensors by their Hugging Face names, already rounded to their type.
struct Checkpoint {
  struct Tensor {
    TensorSlot slot;
    std::vector<std::uint64_t> shape;
    Matrix values;
  };
  LlamaShape shape;
  Parts parts;
  std::map<std::string, Tensor> tensors;

  explicit Checkpoint(const LlamaShape& s, const Parts& p = {}) : shape(s), parts(p) {
    const std::uint64_t h = s.hidden_size;
    add("model.embed_tokens.weight", {TensorPart::Embedding}, {s.vocab_size, h}, {0, 0.5F});
    if (!s.tie_word_embeddings) {
      add("lm_head.weight", {TensorPart::Head}, {s.vocab_size, h}, {0, 0.2F});
    }
    add("model.norm.weight", {TensorPart::FinalNorm}, {h}, {1, 0.1F});
    for (std::uint32_t i = 0; i < s.num_layers; ++i) add_layer(i);
  }

  DecoderSpec spec() const {
    DecoderSpec spec = spec_of(shape);
    for (std::uint32_t i = 0; i < shape.num_layers; ++i) {
      LayerSpec& layer = spec.layers[i];
      const LinearSpec plain{false, layer.mlp.down.format};
      layer.residual_scale = parts.residual_scale;
      if (parts.post_norms) layer.post_attention = layer.post_mlp = layer.pre_mlp;
      layer.attention.output_gate = parts.output_gate;
      layer.attention.gate = plain.format;
      for (LinearSpec* linear :
           {&layer.attention.qkv, &layer.attention.o, &layer.mlp.gate_up, &layer.mlp.down}) {
        linear->ordered = parts.ordered;
      }
      if (!parts.has_experts(i)) continue;
      layer.mlp = parts.experts;
      layer.mlp.gate_up = layer.mlp.down = layer.mlp.router = plain;
      SharedExpertSpec& shared = layer.mlp.shared;
      shared.gate_up = shared.down = shared.gate = plain.format;
    }
    return spec;
  }

  void load(Context& context, std::uint32_t model) const {
    for (const auto& [name, whole] : tensors) {
      const Tensor tensor = parts.ordered ? in_order(context, model, whole) : whole;
      std::vector<std::byte> data(tensor.values.size() * ops::dtype_bytes(shape.dtype) + 1);
      // One byte off: tensors in a file have no alignment to rely on.
      for (std::size_t i = 0; i < tensor.values.size(); ++i) {
        ops::store_element(data.data() + 1, shape.dtype, i, static_cast<float>(tensor.values[i]));
      }
      context.set_tensor(model, tensor.slot,
                         {shape.dtype, tensor.shape, std::span(data).subspan(1)});
    }
  }

 private:
  // A matrix with its columns in an order, which is set with its first rows.
  Tensor in_order(Context& context, std::uint32_t model, const Tensor& tensor) const {
    const TensorPart part = tensor.slot.part;
    if (part != TensorPart::Qkv && part != TensorPart::O && part != TensorPart::GateUp &&
        part != TensorPart::Down) {
      return tensor;
    }
    const std::uint64_t columns = tensor.shape[1];
    std::vector<float> order(columns);
    std::iota(order.begin(), order.end(), 0.0F);
    std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(part)));
    Tensor ordered = tensor;
    for (std::size_t i = 0; i < tensor.values.size(); ++i) {
      const auto source = static_cast<std::size_t>(order[i % columns]);
      ordered.values[i] = tensor.values[i / columns * columns + source];
    }
    if (tensor.slot.first_row != 0) return ordered;
    TensorSlot slot = tensor.slot;
    slot.part = order_of(part);
    const std::uint64_t shape[] = {columns};
    context.set_tensor(model, slot, {ops::Dtype::F32, shape, std::as_bytes(std::span(order))});
    return ordered;
  }

  struct Spread {
    float centre;
    float deviation;
  };

  void add(const std::string& name, TensorSlot slot, std::vector<std::uint64_t> dimensions,
           Spread spread) {
    std::size_t size = 1;
    for (auto d : dimensions) size *= d;
    Matrix values(size);
    std::byte element[4];
    for (double& value : values) {
      const float drawn = spread.centre + spread.deviation * normal_(random_);
      ops::store_element(element, shape.dtype, 0, drawn);
      value = ops::load_element(element, shape.dtype, 0);
    }
    tensors[name] = {slot, std::move(dimensions), std::move(values)};
  }

  void add_layer(std::uint32_t i) {
    const LlamaShape& s = shape;
    const std::uint64_t h = s.hidden_size;
    const std::uint32_t inner = s.intermediate_size;
    const std::string p = "model.layers." + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name, TensorSlot slot, std::uint64_t n,
                            std::uint64_t k) {
      slot.layer = i;
      add(p + name + ".weight", slot, {n, k}, {0, 0.12F});
      const bool is_mlp = name.starts_with("mlp");
      if (!(is_mlp ? s.mlp_bias : s.attention_bias)) return;
      // A bias's part follows its matrix's.
      slot.part = static_cast<TensorPart>(static_cast<int>(slot.part) + 1);
      add(p + name + ".bias", slot, {n}, {0, 0.3F});
    };
    add(p + "input_layernorm.weight", {TensorPart::PreAttentionNorm, i}, {h}, {1, 0.1F});
    add(p + "post_attention_layernorm.weight", {TensorPart::PreMlpNorm, i}, {h}, {1, 0.1F});
    linear("self_attn.q_proj", {TensorPart::Qkv}, s.q_size(), h);
    linear("self_attn.k_proj", {TensorPart::Qkv, 0, 0, s.q_size()}, s.kv_size(), h);
    linear("self_attn.v_proj", {TensorPart::Qkv, 0, 0, s.q_size() + s.kv_size()}, s.kv_size(), h);
    linear("self_attn.o_proj", {TensorPart::O}, h, s.q_size());
    if (parts.output_gate) {
      add(p + "self_attn.gate_proj.weight", {TensorPart::OutputGate, i}, {s.q_size(), h},
          {0, 0.3F});
    }
    if (parts.post_norms) {
      add(p + "post_attn_norm.weight", {TensorPart::PostAttentionNorm, i}, {h}, {1, 0.1F});
      add(p + "post_mlp_norm.weight", {TensorPart::PostMlpNorm, i}, {h}, {1, 0.1F});
    }
    if (parts.has_experts(i)) return add_experts(i, p + "mlp.");
    linear("mlp.gate_proj", {TensorPart::GateUp}, inner, h);
    linear("mlp.up_proj", {TensorPart::GateUp, 0, 0, inner}, inner, h);
    linear("mlp.down_proj", {TensorPart::Down}, h, inner);
  }

  void add_experts(std::uint32_t i, const std::string& p) {
    const MlpSpec& mlp = parts.experts;
    const std::uint64_t h = shape.hidden_size;
    const auto mlp_of = [&](const std::string& name, TensorSlot gate_up, TensorSlot down,
                            std::uint32_t inner) {
      add(p + name + "gate_proj.weight", gate_up, {inner, h}, {0, 0.12F});
      gate_up.first_row = inner;
      add(p + name + "up_proj.weight", gate_up, {inner, h}, {0, 0.12F});
      add(p + name + "down_proj.weight", down, {h, inner}, {0, 0.12F});
    };
    add(p + "gate.weight", {TensorPart::Router, i}, {mlp.num_experts, h}, {0, 0.2F});
    if (mlp.score_correction) {
      add(p + "bias", {TensorPart::ScoreCorrection, i}, {mlp.num_experts}, {0, 0.3F});
    }
    for (std::uint32_t e = 0; e < mlp.num_experts; ++e) {
      mlp_of("experts." + std::to_string(e) + ".", {TensorPart::GateUp, i, e},
             {TensorPart::Down, i, e}, mlp.intermediate_size);
    }
    const SharedExpertSpec& shared = mlp.shared;
    if (shared.intermediate_size == 0) return;
    mlp_of("shared.", {TensorPart::SharedGateUp, i}, {TensorPart::SharedDown, i},
           shared.intermediate_size);
    if (shared.has_gate) {
      add(p + "shared_gate.weight", {TensorPart::SharedGate, i}, {1, h}, {0, 0.2F});
    }
  }

  std::mt19937 random_{5};
  std::normal_distribution<float> normal_{0, 1};
};

// The paper, with nothing clever: all positions at once, in double.
struct Reference {
  const Checkpoint& c;

  const Matrix& weight(const std::string& name) const { return c.tensors.at(name).values; }

  Matrix linear(const Matrix& x, const std::string& name, std::size_t n, std::size_t k) const {
    const Matrix& w = weight(name + ".weight");
    const auto bias = c.tensors.find(name + ".bias");
    const std::size_t rows = x.size() / k;
    Matrix out(rows * n);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < n; ++i) {
        double sum = bias == c.tensors.end() ? 0 : bias->second.values[i];
        for (std::size_t j = 0; j < k; ++j) sum += x[r * k + j] * w[i * k + j];
        out[r * n + i] = sum;
      }
    }
    return out;
  }

  Matrix norm(const Matrix& x, const std::string& name) const {
    const std::size_t h = c.shape.hidden_size;
    Matrix out(x.size());
    for (std::size_t r = 0; r < x.size() / h; ++r) {
      double squares = 0;
      for (std::size_t i = 0; i < h; ++i) squares += x[r * h + i] * x[r * h + i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(h) + c.shape.rms_norm_eps);
      for (std::size_t i = 0; i < h; ++i) out[r * h + i] = x[r * h + i] * scale * weight(name)[i];
    }
    return out;
  }

  double frequency(std::size_t i) const {
    return std::pow(c.shape.rope_theta, -2.0 * static_cast<double>(i) / c.shape.head_dim);
  }

  void rope(Matrix& x, std::size_t heads) const {
    const std::size_t d = c.shape.head_dim;
    for (std::size_t t = 0; t < x.size() / (heads * d); ++t) {
      for (std::size_t head = 0; head < heads; ++head) {
        double* v = x.data() + (t * heads + head) * d;
        for (std::size_t i = 0; i < d / 2; ++i) {
          const double angle = static_cast<double>(t) * frequency(i);
          const double a = v[i];
          const double b = v[i + d / 2];
          v[i] = a * std::cos(angle) - b * std::sin(angle);
          v[i + d / 2] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
  }

  Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v) const {
    const std::size_t d = c.shape.head_dim;
    const std::size_t heads = c.shape.num_heads;
    const std::size_t kv_heads = c.shape.num_kv_heads;
    Matrix out(q.size());
    for (std::size_t t = 0; t < q.size() / (heads * d); ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t g = h / (heads / kv_heads);
        Matrix p(t + 1);
        double total = 0;
        for (std::size_t u = 0; u <= t; ++u) {
          double score = 0;
          for (std::size_t i = 0; i < d; ++i) {
            score += q[(t * heads + h) * d + i] * k[(u * kv_heads + g) * d + i];
          }
          total += p[u] = std::exp(score / std::sqrt(static_cast<double>(d)));
        }
        for (std::size_t u = 0; u <= t; ++u) {
          for (std::size_t i = 0; i < d; ++i) {
            out[(t * heads + h) * d + i] += p[u] / total * v[(u * kv_heads + g) * d + i];
          }
        }
      }
    }
    return out;
  }

  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  Matrix dense(const Matrix& m, const std::string& p, std::uint32_t inner) const {
    const std::size_t h = c.shape.hidden_size;
    Matrix gate = linear(m, p + "gate_proj", inner, h);
    const Matrix up = linear(m, p + "up_proj", inner, h);
    for (std::size_t j = 0; j < gate.size(); ++j) gate[j] *= up[j] * sigmoid(gate[j]);
    return linear(gate, p + "down_proj", h, inner);
  }

  // The weights of a token's experts, 0 of those that it does not go to.
  Matrix route(const double* logits, const std::string& p) const {
    const MlpSpec& mlp = c.parts.experts;
    const bool sigmoids = mlp.router_kind == ops::RouterKind::Sigmoid;
    Matrix scores(logits, logits + mlp.num_experts);
    for (double& score : scores) score = sigmoids ? sigmoid(score) : std::exp(score);
    const double all = std::accumulate(scores.begin(), scores.end(), 0.0);
    const auto rank = [&](std::uint32_t e) {
      return scores[e] + (mlp.score_correction ? weight(p + "bias")[e] : 0);
    };
    std::vector<std::uint32_t> order(mlp.num_experts);
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return rank(a) > rank(b); });
    order.resize(mlp.experts_per_token);
    double chosen = 0;
    for (const std::uint32_t e : order) chosen += scores[e];
    const double divisor = mlp.renormalise ? chosen : sigmoids ? 1 : all;
    Matrix weights(mlp.num_experts);
    for (const std::uint32_t e : order) weights[e] = scores[e] / divisor * mlp.routed_scale;
    return weights;
  }

  Matrix experts(const Matrix& m, const std::string& p) const {
    const MlpSpec& mlp = c.parts.experts;
    const std::size_t h = c.shape.hidden_size;
    const std::size_t rows = m.size() / h;
    Matrix out(m.size());
    const auto add = [&](const Matrix& y, std::size_t r, double factor) {
      for (std::size_t j = 0; j < h; ++j) out[r * h + j] += factor * y[r * h + j];
    };
    const Matrix logits = linear(m, p + "gate", mlp.num_experts, h);
    for (std::uint32_t e = 0; e < mlp.num_experts; ++e) {
      const Matrix y = dense(m, p + "experts." + std::to_string(e) + ".", mlp.intermediate_size);
      for (std::size_t r = 0; r < rows; ++r) add(y, r, route(&logits[r * mlp.num_experts], p)[e]);
    }
    if (mlp.shared.intermediate_size == 0) return out;
    const Matrix y = dense(m, p + "shared.", mlp.shared.intermediate_size);
    Matrix gates(rows, 1);
    if (mlp.shared.has_gate) {
      gates = linear(m, p + "shared_gate", 1, h);
      for (double& gate : gates) gate = sigmoid(gate);
    }
    for (std::size_t r = 0; r < rows; ++r) add(y, r, gates[r]);
    return out;
  }

  // logits [vocab_size] after the last token.
  Matrix logits(const std::vector<std::uint32_t>& ids) const {
    const LlamaShape& s = c.shape;
    const std::size_t h = s.hidden_size;
    Matrix x;
    for (auto id : ids) {
      const auto row = weight("model.embed_tokens.weight").begin() + static_cast<long>(id * h);
      x.insert(x.end(), row, row + static_cast<long>(h));
    }
    const auto add = [&](Matrix y, const std::string& post_norm) {
      if (c.parts.post_norms) y = norm(y, post_norm);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += c.parts.residual_scale * y[i];
    };
    for (std::uint32_t i = 0; i < s.num_layers; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      const Matrix n = norm(x, p + "input_layernorm.weight");
      Matrix q = linear(n, p + "self_attn.q_proj", s.q_size(), h);
      Matrix k = linear(n, p + "self_attn.k_proj", s.kv_size(), h);
      const Matrix v = linear(n, p + "self_attn.v_proj", s.kv_size(), h);
      rope(q, s.num_heads);
      rope(k, s.num_kv_heads);
      Matrix attended = attention(q, k, v);
      if (c.parts.output_gate) {
        const Matrix gate = linear(n, p + "self_attn.gate_proj", s.q_size(), h);
        for (std::size_t j = 0; j < gate.size(); ++j) attended[j] *= sigmoid(gate[j]);
      }
      add(linear(attended, p + "self_attn.o_proj", h, s.q_size()), p + "post_attn_norm.weight");
      const Matrix m = norm(x, p + "post_attention_layernorm.weight");
      add(c.parts.has_experts(i) ? experts(m, p + "mlp.")
                                 : dense(m, p + "mlp.", s.intermediate_size),
          p + "post_mlp_norm.weight");
    }
    x = norm(Matrix(x.end() - static_cast<long>(h), x.end()), "model.norm.weight");
    return linear(x, s.tie_word_embeddings ? "model.embed_tokens" : "lm_head", s.vocab_size, h);
  }
};

}  // namespace inferno::engine::test
