#include "engine/weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/error.h"

namespace inferno::engine {
namespace {

constexpr float kDeviation =
    0.02F;  // initializer_range of the Llama family; trained weights stay near it
constexpr std::size_t kNamesInError = 8;

[[noreturn]] void refuse(const std::string& tensor, const std::string& what) {
  throw Error(ErrorCode::kOther, "tensor " + tensor + ": " + what);
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  for (const std::uint64_t dimension : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dimension);
  }
  return text + "]";
}

}  // namespace

Weights::Weights(Backend& device, const ModelShape& shape)
    : device_(&device), sizes_(device.sizes()), shape_(shape) {
  range_ = PoolRange(device.pool(), bytes_needed(sizes_, shape));
  base_ = range_.data();
  place_all();
}

std::uint64_t Weights::bytes_needed(const Sizes& sizes, const ModelShape& shape) {
  Weights dry_run(sizes, shape);
  dry_run.place_all();
  return dry_run.layout_.bytes();
}

std::byte* Weights::place(std::uint64_t bytes) {
  const std::uint64_t offset = layout_.place(bytes);
  return base_ == nullptr ? nullptr : base_ + offset;
}

void Weights::add_target(Target target) {
  by_name_.emplace(target.name, targets_.size());
  targets_.push_back(std::move(target));
}

ops::PackedWeights Weights::place_matrix(const std::string& prefix, Parts parts,
                                         std::uint32_t num_columns) {
  ops::WeightShape matrix{0, num_columns, shape_.dtype};
  for (const Part& part : parts) matrix.num_rows += part.num_rows;
  std::byte* data = place(sizes_.matrix_bytes(matrix));
  std::uint32_t first_row = 0;
  for (const Part& part : parts) {
    add_target({.name = prefix + part.name + ".weight",
                .num_rows = part.num_rows,
                .num_columns = num_columns,
                .matrix = matrix,
                .first_row = first_row,
                .data = data});
    first_row += part.num_rows;
  }
  return {data, matrix};
}

const float* Weights::place_vector(const std::string& prefix, Parts parts, float fill) {
  std::uint32_t length = 0;
  for (const Part& part : parts) length += part.num_rows;
  std::byte* data = place(std::uint64_t{length} * sizeof(float));
  std::uint64_t offset = 0;
  for (const Part& part : parts) {
    add_target({.name = prefix + part.name,
                .is_vector = true,
                .num_rows = 1,
                .num_columns = part.num_rows,
                .data = data == nullptr ? nullptr : data + offset,
                .fill = fill});
    offset += std::uint64_t{part.num_rows} * sizeof(float);
  }
  return reinterpret_cast<const float*>(data);
}

Linear Weights::place_linear(const std::string& prefix, Parts parts, std::uint32_t num_columns,
                             bool with_bias) {
  Linear linear;
  linear.weight = place_matrix(prefix, parts, num_columns);
  if (!with_bias) return linear;
  const std::size_t first = targets_.size();
  linear.bias = place_vector(prefix, parts, 0);
  for (std::size_t i = first; i < targets_.size(); ++i) {
    by_name_.erase(targets_[i].name);
    targets_[i].name += ".bias";
    by_name_.emplace(targets_[i].name, i);
  }
  return linear;
}

LayerWeights Weights::place_layer(std::uint32_t index) {
  const std::string layer = "model.layers." + std::to_string(index) + ".";
  const std::string attention = layer + "self_attn.";
  const std::string mlp = layer + "mlp.";
  const ModelShape& s = shape_;
  LayerWeights weights;
  weights.input_norm = place_vector(layer, {{"input_layernorm.weight", s.hidden_size}}, 1);
  weights.qkv = place_linear(
      attention, {{"q_proj", s.q_size()}, {"k_proj", s.kv_size()}, {"v_proj", s.kv_size()}},
      s.hidden_size, s.attention_bias);
  weights.o = place_linear(attention, {{"o_proj", s.hidden_size}}, s.q_size(), s.attention_bias);
  weights.post_attention_norm =
      place_vector(layer, {{"post_attention_layernorm.weight", s.hidden_size}}, 1);
  weights.gate_up =
      place_linear(mlp, {{"gate_proj", s.intermediate_size}, {"up_proj", s.intermediate_size}},
                   s.hidden_size, s.mlp_bias);
  weights.down = place_linear(mlp, {{"down_proj", s.hidden_size}}, s.intermediate_size, s.mlp_bias);
  return weights;
}

void Weights::place_all() {
  embedding = place_matrix("model.", {{"embed_tokens", shape_.vocab_size}}, shape_.hidden_size);
  for (std::uint32_t i = 0; i < shape_.num_layers; ++i) layers.push_back(place_layer(i));
  final_norm = place_vector("model.", {{"norm.weight", shape_.hidden_size}}, 1);
  if (!shape_.tie_word_embeddings) {
    lm_head = place_linear("", {{"lm_head", shape_.vocab_size}}, shape_.hidden_size, false);
    return;
  }
  lm_head.weight = embedding;
  add_target({.name = "lm_head.weight",
              .num_rows = shape_.vocab_size,
              .num_columns = shape_.hidden_size,
              .is_alias = true});
}

void Weights::check(const Target& target, const TensorView& tensor) {
  const std::uint64_t rows = target.num_rows;
  const std::uint64_t columns = target.num_columns;
  const bool fits = target.is_vector ? tensor.shape.size() == 1 && tensor.shape[0] == columns
                                     : tensor.shape.size() == 2 && tensor.shape[0] == rows &&
                                           tensor.shape[1] == columns;
  if (!fits) {
    const std::uint64_t expected[] = {rows, columns};
    refuse(target.name, "expected shape " +
                            shape_text(std::span(expected).subspan(target.is_vector ? 1 : 0)) +
                            ", got " + shape_text(tensor.shape));
  }
  const std::uint64_t bytes = rows * columns * ops::dtype_bytes(tensor.dtype);
  if (tensor.data.size() != bytes) {
    refuse(target.name, "expected " + std::to_string(bytes) + " bytes of " +
                            ops::dtype_name(tensor.dtype) + ", got " +
                            std::to_string(tensor.data.size()));
  }
  if (target.is_set) refuse(target.name, "given twice");
}

void Weights::set(std::string_view name, const TensorView& tensor) {
  // Old Llama checkpoints carry what follows from the configuration.
  if (name.ends_with(".rotary_emb.inv_freq")) return;
  const auto found = by_name_.find(std::string(name));
  if (found == by_name_.end()) refuse(std::string(name), "not part of this model");
  Target& target = targets_[found->second];
  check(target, tensor);
  if (target.is_vector) {
    std::vector<float> values(target.num_columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = ops::load_element(tensor.data.data(), tensor.dtype, i);
    }
    device_->write_vector(reinterpret_cast<float*>(target.data), values);
  } else if (!target.is_alias) {
    device_->write_rows(target.rows(), {tensor.data.data(), tensor.dtype, target.num_rows});
  }
  target.is_set = true;
}

void Weights::fill_random(std::uint64_t seed) {
  const NormalTable normal(kDeviation, shape_.dtype);
  for (std::size_t i = 0; i < targets_.size(); ++i) {
    Target& target = targets_[i];
    if (target.is_vector) {
      const std::vector<float> values(target.num_columns, target.fill);
      device_->write_vector(reinterpret_cast<float*>(target.data), values);
    } else if (!target.is_alias) {
      device_->randomise_rows(target.rows(), normal, tensor_key(seed, i));
    }
    target.is_set = true;
  }
}

void Weights::check_complete() const {
  device_->finish_writes();
  std::string names;
  std::size_t count = 0;
  for (const Target& target : targets_) {
    if (target.is_set || target.is_alias) continue;
    if (++count <= kNamesInError) names += (count == 1 ? "" : ", ") + target.name;
  }
  if (count == 0) return;
  if (count > kNamesInError) names += ", …";
  throw Error(ErrorCode::kOther, std::to_string(count) + " tensors are missing: " + names);
}

}  // namespace inferno::engine
