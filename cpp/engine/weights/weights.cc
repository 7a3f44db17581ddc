#include "engine/weights/weights.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

constexpr float kDeviation =
    0.02F;  // initializer_range of most families; trained weights stay near it
constexpr std::size_t kNamesInError = 8;

[[noreturn]] void refuse(const std::string& tensor, const std::string& what) {
  throw Error(ErrorCode::kOther, tensor + ": " + what);
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  for (const std::uint64_t dimension : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dimension);
  }
  return text + "]";
}

bool is_in_layer(TensorPart part) {
  return part != TensorPart::Embedding && part != TensorPart::FinalNorm && part != TensorPart::Head;
}

std::string slot_text(std::uint32_t layer, TensorPart part, std::uint32_t expert) {
  std::string text;
  if (is_in_layer(part)) text.append("layers[").append(std::to_string(layer)).append("].");
  text.append(part_name(part));
  if (expert > 0) text.append("[").append(std::to_string(expert)).append("]");
  return text;
}

TensorPart bias_of(TensorPart matrix) {
  switch (matrix) {
    case TensorPart::Qkv:
      return TensorPart::QkvBias;
    case TensorPart::O:
      return TensorPart::OBias;
    case TensorPart::Router:
      return TensorPart::RouterBias;
    case TensorPart::GateUp:
      return TensorPart::GateUpBias;
    case TensorPart::Down:
      return TensorPart::DownBias;
    default:
      throw Error(ErrorCode::kOther, std::string(part_name(matrix)) + " has no bias");
  }
}

// Numbers that name each input once become words in their place.
void make_order(const std::string& name, std::span<float> values) {
  std::vector<bool> seen(values.size());
  for (float& value : values) {
    const bool exists = value >= 0 && value < static_cast<float>(values.size());
    const auto column = exists ? static_cast<std::uint32_t>(value) : 0;
    if (!exists || static_cast<float>(column) != value || seen[column]) {
      refuse(name, "expected each of " + std::to_string(values.size()) + " columns once, got " +
                       std::to_string(value));
    }
    seen[column] = true;
    value = std::bit_cast<float>(column);
  }
}

// Data, scales and offsets against the shape. `columns`: of a vector 1.
void check_sizes(const std::string& name, const TensorView& tensor, std::uint32_t columns) {
  const WeightFormat& format = tensor.format;
  const std::uint64_t rows = tensor.shape[0];
  const auto check = [&](const char* what, std::uint64_t expected, std::uint64_t got) {
    if (expected == got) return;
    refuse(name, "expected " + std::to_string(expected) + " " + what + " of " +
                     ops::weight_kind_name(format.kind) + ", got " + std::to_string(got));
  };
  if (format.is_quantized() && tensor.shape.size() != 2) refuse(name, "a quantized vector");
  check("bytes", rows * ops::source_row_bytes(format, columns), tensor.data.size());
  const std::uint64_t groups = rows * ops::num_groups(format, columns);
  check("scales", format.is_quantized() ? groups : 0, tensor.scales.size());
  check("offsets", format.offsets ? groups : 0, tensor.offsets.size());
}

}  // namespace

TensorPart order_of(TensorPart matrix) {
  switch (matrix) {
    case TensorPart::Qkv:
      return TensorPart::QkvOrder;
    case TensorPart::O:
      return TensorPart::OOrder;
    case TensorPart::GateUp:
      return TensorPart::GateUpOrder;
    case TensorPart::Down:
      return TensorPart::DownOrder;
    default:
      throw Error(ErrorCode::kOther, std::string(part_name(matrix)) + " has no order");
  }
}

const char* part_name(TensorPart part) {
  static constexpr const char* kNames[] = {"embedding",
                                           "final_norm",
                                           "head",
                                           "pre_attention_norm",
                                           "qkv",
                                           "qkv_bias",
                                           "qkv_order",
                                           "q_norm",
                                           "k_norm",
                                           "sinks",
                                           "output_gate",
                                           "o",
                                           "o_bias",
                                           "o_order",
                                           "post_attention_norm",
                                           "pre_mlp_norm",
                                           "router",
                                           "router_bias",
                                           "score_correction",
                                           "gate_up",
                                           "gate_up_bias",
                                           "gate_up_order",
                                           "down",
                                           "down_bias",
                                           "down_order",
                                           "shared_gate_up",
                                           "shared_down",
                                           "shared_gate",
                                           "post_mlp_norm"};
  static_assert(std::size(kNames) == static_cast<std::size_t>(TensorPart::PostMlpNorm) + 1);
  const auto index = static_cast<std::size_t>(part);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

bool Weights::Target::is_complete() const {
  std::uint64_t count = 0;
  for (const Rows& rows : set) count += rows.count;
  return count == length();
}

Weights::Weights(Backend& device, const DecoderSpec& spec)
    : device_(&device), sizes_(device.sizes()), spec_(spec) {
  range_ = PoolRange(device.pool(), bytes_needed(sizes_, spec));
  base_ = range_.data();
  place_all();
}

std::uint64_t Weights::bytes_needed(const Sizes& sizes, const DecoderSpec& spec) {
  Weights dry_run(sizes, spec);
  dry_run.place_all();
  return dry_run.layout_.bytes();
}

std::byte* Weights::place(std::uint64_t bytes) {
  const std::uint64_t offset = layout_.place(bytes);
  return base_ == nullptr ? nullptr : base_ + offset;
}

void Weights::add_target(const TensorSlot& slot, Target target) {
  if (base_ == nullptr) return;
  targets_.emplace(Key{slot.layer, slot.part, slot.expert}, std::move(target));
}

ops::PackedWeights Weights::place_matrix(const TensorSlot& slot, Size size, WeightFormat format) {
  const ops::WeightShape matrix{size.num_rows, size.num_columns, format};
  std::byte* data = place(sizes_.matrix_bytes(matrix));
  add_target(slot, {.matrix = matrix, .data = data});
  return {data, matrix};
}

const float* Weights::place_vector(const TensorSlot& slot, std::uint32_t length, float fill) {
  std::byte* data = place(std::uint64_t{length} * sizeof(float));
  add_target(
      slot,
      {.is_vector = true, .matrix = {1, length, ops::Dtype::F32}, .data = data, .fill = fill});
  return reinterpret_cast<const float*>(data);
}

const std::uint32_t* Weights::place_order(const TensorSlot& slot, std::uint32_t num_columns) {
  static_assert(sizeof(std::uint32_t) == sizeof(float));
  std::byte* data = place(std::uint64_t{num_columns} * sizeof(std::uint32_t));
  add_target(slot, {.is_vector = true,
                    .is_order = true,
                    .matrix = {1, num_columns, ops::Dtype::F32},
                    .data = data});
  return reinterpret_cast<const std::uint32_t*>(data);
}

const float* Weights::place_norm(const TensorSlot& slot, NormKind kind) {
  return kind == NormKind::Rms ? place_vector(slot, spec_.hidden_size, 1) : nullptr;
}

Linear Weights::place_linear(const TensorSlot& slot, Size size, const LinearSpec& linear) {
  Linear placed;
  placed.weight = place_matrix(slot, size, linear.format);
  if (linear.bias) placed.bias = place_vector({bias_of(slot.part), slot.layer}, size.num_rows, 0);
  if (linear.ordered) {
    placed.order = place_order({order_of(slot.part), slot.layer}, size.num_columns);
  }
  return placed;
}

ops::ExpertMatrix Weights::place_experts(const TensorSlot& slot, Size size, const MlpSpec& mlp) {
  const LinearSpec& linear = slot.part == TensorPart::Down ? mlp.down : mlp.gate_up;
  const ops::WeightShape matrix{size.num_rows, size.num_columns, linear.format};
  ops::ExpertMatrix placed{.shape = matrix};
  placed.expert_stride = sizes_.matrix_bytes(matrix);
  std::byte* data = place(placed.expert_stride * mlp.num_experts);
  placed.data = data;
  std::byte* biases = nullptr;
  const std::uint64_t bias_bytes = std::uint64_t{size.num_rows} * sizeof(float);
  if (linear.bias) biases = place(bias_bytes * mlp.num_experts);
  placed.bias = reinterpret_cast<const float*>(biases);
  if (base_ == nullptr) return placed;
  for (std::uint32_t expert = 0; expert < mlp.num_experts; ++expert) {
    add_target({slot.part, slot.layer, expert},
               {.matrix = matrix, .data = data + placed.expert_stride * expert});
    if (!linear.bias) continue;
    add_target({bias_of(slot.part), slot.layer, expert},
               {.is_vector = true,
                .matrix = {1, size.num_rows, ops::Dtype::F32},
                .data = biases + bias_bytes * expert});
  }
  return placed;
}

void Weights::place_mlp(std::uint32_t layer, const MlpSpec& mlp, LayerWeights& weights) {
  const std::uint32_t hidden = spec_.hidden_size;
  const Size gate_up{2 * mlp.intermediate_size, hidden};
  const Size down{hidden, mlp.intermediate_size};
  if (mlp.kind == MlpKind::Dense) {
    weights.gate_up = place_linear({TensorPart::GateUp, layer}, gate_up, mlp.gate_up);
    weights.down = place_linear({TensorPart::Down, layer}, down, mlp.down);
    return;
  }
  weights.router = place_linear({TensorPart::Router, layer}, {mlp.num_experts, hidden}, mlp.router);
  if (mlp.score_correction) {
    weights.score_correction =
        place_vector({TensorPart::ScoreCorrection, layer}, mlp.num_experts, 0);
  }
  weights.expert_gate_up = place_experts({TensorPart::GateUp, layer}, gate_up, mlp);
  weights.expert_down = place_experts({TensorPart::Down, layer}, down, mlp);
  const SharedExpertSpec& shared = mlp.shared;
  const std::uint32_t inner = shared.intermediate_size;
  if (inner == 0) return;
  weights.gate_up =
      place_linear({TensorPart::SharedGateUp, layer}, {2 * inner, hidden}, {false, shared.gate_up});
  weights.down =
      place_linear({TensorPart::SharedDown, layer}, {hidden, inner}, {false, shared.down});
  if (!shared.has_gate) return;
  weights.shared_gate =
      place_linear({TensorPart::SharedGate, layer}, {1, hidden}, {false, shared.gate});
}

void Weights::place_attention(std::uint32_t layer, const AttentionSpec& spec,
                              LayerWeights& weights) {
  weights.qkv =
      place_linear({TensorPart::Qkv, layer}, {spec.qkv_size(), spec_.hidden_size}, spec.qkv);
  if (spec.qk_norm == QkNorm::PerHead || spec.qk_norm == QkNorm::PerRow) {
    const bool per_head = spec.qk_norm == QkNorm::PerHead;
    weights.q_norm =
        place_vector({TensorPart::QNorm, layer}, per_head ? spec.head_dim : spec.q_size(), 1);
    weights.k_norm =
        place_vector({TensorPart::KNorm, layer}, per_head ? spec.head_dim : spec.kv_size(), 1);
  }
  if (spec.sinks) weights.sinks = place_vector({TensorPart::Sinks, layer}, spec.num_heads, 0);
  if (spec.output_gate) {
    weights.output_gate = place_linear({TensorPart::OutputGate, layer},
                                       {spec.q_size(), spec_.hidden_size}, {false, spec.gate});
  }
  weights.o = place_linear({TensorPart::O, layer}, {spec_.hidden_size, spec.q_size()}, spec.o);
}

LayerWeights Weights::place_layer(std::uint32_t index) {
  const LayerSpec& layer = spec_.layers[index];
  LayerWeights weights;
  weights.pre_attention_norm =
      place_norm({TensorPart::PreAttentionNorm, index}, layer.pre_attention.kind);
  place_attention(index, layer.attention, weights);
  weights.post_attention_norm =
      place_norm({TensorPart::PostAttentionNorm, index}, layer.post_attention.kind);
  weights.pre_mlp_norm = place_norm({TensorPart::PreMlpNorm, index}, layer.pre_mlp.kind);
  place_mlp(index, layer.mlp, weights);
  weights.post_mlp_norm = place_norm({TensorPart::PostMlpNorm, index}, layer.post_mlp.kind);
  return weights;
}

void Weights::place_all() {
  const Size table{spec_.vocab_size, spec_.hidden_size};
  embedding = place_matrix({TensorPart::Embedding}, table, spec_.embedding);
  layers.reserve(spec_.layers.size());
  for (std::uint32_t i = 0; i < spec_.num_layers(); ++i) layers.push_back(place_layer(i));
  final_norm = place_norm({TensorPart::FinalNorm}, spec_.final_norm.kind);
  if (spec_.tied_embeddings) {
    head.weight = embedding;
  } else {
    head = place_linear({TensorPart::Head}, table, {false, spec_.head.format});
  }
}

void Weights::set(const TensorSlot& slot, const TensorView& tensor) {
  const std::string name = slot_text(slot.layer, slot.part, slot.expert);
  const auto found = targets_.find({slot.layer, slot.part, slot.expert});
  if (found == targets_.end()) refuse(name, "not part of this model");
  Target& target = found->second;
  const std::size_t rank = target.is_vector ? 1 : 2;
  const bool fits = tensor.shape.size() == rank &&
                    (target.is_vector || tensor.shape[1] == target.matrix.num_columns) &&
                    slot.first_row < target.length() && tensor.shape[0] > 0 &&
                    tensor.shape[0] <= target.length() - slot.first_row;
  if (!fits) {
    const std::uint64_t whole[] = {target.length(), target.matrix.num_columns};
    refuse(name, "expected rows of " + shape_text(std::span(whole).first(rank)) + " from " +
                     std::to_string(slot.first_row) + ", got " + shape_text(tensor.shape));
  }
  const auto count = static_cast<std::uint32_t>(tensor.shape[0]);
  if (target.is_order && count != target.length()) refuse(name, "a part of an order");
  check_sizes(name, tensor, target.is_vector ? 1 : target.matrix.num_columns);
  for (const Rows& rows : target.set) {
    if (slot.first_row < rows.first + rows.count && rows.first < slot.first_row + count) {
      refuse(name, "given twice");
    }
  }
  if (target.is_vector) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) {
      values[i] = ops::load_element(tensor.data.data(), tensor.format.dtype(), i);
    }
    if (target.is_order) make_order(name, values);
    device_->write_vector(reinterpret_cast<float*>(target.data) + slot.first_row, values);
  } else {
    const float* offsets = tensor.offsets.empty() ? nullptr : tensor.offsets.data();
    device_->write_rows({target.matrix, target.data, slot.first_row, count},
                        {tensor.data.data(), tensor.format, count, tensor.scales.data(), offsets});
  }
  target.set.push_back({slot.first_row, count});
}

void Weights::fill_random(std::uint64_t seed) {
  // Matrices may have several formats; a device is handed all of one before the next. What is
  // quantized is drawn in 16 bits.
  for (const ops::Dtype dtype : {ops::Dtype::F16, ops::Dtype::BF16, ops::Dtype::F32}) {
    const NormalTable normal(kDeviation, dtype);
    std::uint64_t index = 0;
    for (auto& [key, target] : targets_) {
      const std::uint64_t stream = tensor_key(seed, index++);
      if (target.matrix.dtype() != dtype) continue;
      if (target.is_vector) {
        std::vector<float> values(target.length());
        normal.fill(stream, 0, std::as_writable_bytes(std::span(values)));
        for (float& value : values) value += target.fill;
        if (target.is_order) {
          std::iota(values.begin(), values.end(), 0.0F);
          make_order("order", values);
        }
        device_->write_vector(reinterpret_cast<float*>(target.data), values);
      } else {
        const std::uint32_t rows = target.matrix.num_rows;
        device_->randomise_rows({target.matrix, target.data, 0, rows}, normal, stream);
      }
      target.set = {{0, target.length()}};
    }
  }
}

void Weights::check_complete() const {
  device_->finish_writes();
  std::string names;
  std::size_t count = 0;
  for (const auto& [key, target] : targets_) {
    if (target.is_complete()) continue;
    const auto& [layer, part, expert] = key;
    if (++count <= kNamesInError)
      names += (count == 1 ? "" : ", ") + slot_text(layer, part, expert);
  }
  if (count == 0) return;
  if (count > kNamesInError) names += ", …";
  throw Error(ErrorCode::kOther, std::to_string(count) + " parts are not complete: " + names);
}

}  // namespace inferno::engine
