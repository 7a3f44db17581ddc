// A random checkpoint and the Llama decoder over it in double, with no cache, no batch and no
// packing: what the forward pass is held against.
#pragma once

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/llama_spec.h"
#include "ops/base/dtype.h"

namespace inferno::engine::test {

using Matrix = std::vector<double>;

// Checkpoint tensors by their Hugging Face names, already rounded to their type.
struct Checkpoint {
  struct Tensor {
    TensorSlot slot;
    std::vector<std::uint64_t> shape;
    Matrix values;
  };
  LlamaShape shape;
  std::map<std::string, Tensor> tensors;

  explicit Checkpoint(const LlamaShape& s) : shape(s) {
    const std::uint64_t h = s.hidden_size;
    add("model.embed_tokens.weight", {TensorPart::Embedding}, {s.vocab_size, h}, {0, 0.5F});
    if (!s.tie_word_embeddings) {
      add("lm_head.weight", {TensorPart::Head}, {s.vocab_size, h}, {0, 0.2F});
    }
    add("model.norm.weight", {TensorPart::FinalNorm}, {h}, {1, 0.1F});
    for (std::uint32_t i = 0; i < s.num_layers; ++i) add_layer(i);
  }

  void load(Context& context, std::uint32_t model) const {
    for (const auto& [name, tensor] : tensors) {
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
    linear("mlp.gate_proj", {TensorPart::GateUp}, inner, h);
    linear("mlp.up_proj", {TensorPart::GateUp, 0, 0, inner}, inner, h);
    linear("mlp.down_proj", {TensorPart::Down}, h, inner);
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

  // logits [vocab_size] after the last token.
  Matrix logits(const std::vector<std::uint32_t>& ids) const {
    const LlamaShape& s = c.shape;
    const std::size_t h = s.hidden_size;
    Matrix x;
    for (auto id : ids) {
      const auto row = weight("model.embed_tokens.weight").begin() + static_cast<long>(id * h);
      x.insert(x.end(), row, row + static_cast<long>(h));
    }
    const auto add = [&](const Matrix& y) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    };
    for (std::uint32_t i = 0; i < s.num_layers; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      const Matrix n = norm(x, p + "input_layernorm.weight");
      Matrix q = linear(n, p + "self_attn.q_proj", s.q_size(), h);
      Matrix k = linear(n, p + "self_attn.k_proj", s.kv_size(), h);
      const Matrix v = linear(n, p + "self_attn.v_proj", s.kv_size(), h);
      rope(q, s.num_heads);
      rope(k, s.num_kv_heads);
      add(linear(attention(q, k, v), p + "self_attn.o_proj", h, s.q_size()));
      const Matrix m = norm(x, p + "post_attention_layernorm.weight");
      Matrix gate = linear(m, p + "mlp.gate_proj", s.intermediate_size, h);
      const Matrix up = linear(m, p + "mlp.up_proj", s.intermediate_size, h);
      for (std::size_t j = 0; j < gate.size(); ++j) gate[j] *= up[j] / (1 + std::exp(-gate[j]));
      add(linear(gate, p + "mlp.down_proj", h, s.intermediate_size));
    }
    x = norm(Matrix(x.end() - static_cast<long>(h), x.end()), "model.norm.weight");
    return linear(x, s.tie_word_embeddings ? "model.embed_tokens" : "lm_head", s.vocab_size, h);
  }
};

}  // namespace inferno::engine::test
