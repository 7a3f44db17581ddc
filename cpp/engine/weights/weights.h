// The weights of one model in one range of the pool: what the forward pass reads, and how they get
// there. Names of a checkpoint's tensors are not known here: a tensor comes with its slot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "engine/backend.h"
#include "engine/base/layout.h"
#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"
#include "ops/experts/experts.h"
#include "ops/linear/packed_weights.h"

namespace inferno::engine {

// A matrix in the backend's layout, and its bias.
struct Linear {
  ops::PackedWeights weight;    // [outputs, inputs]
  const float* bias = nullptr;  // [outputs], or null for none
  // [inputs] which of them each column is multiplied by, or null where they stand in order.
  const std::uint32_t* order = nullptr;
};

// Null where the layer's spec has it not.
struct LayerWeights {
  const float* pre_attention_norm = nullptr;   // [hidden_size]
  Linear qkv;                                  // [q_size + 2 kv_size, hidden_size]: q, then k, v
  const float* q_norm = nullptr;               // [head_dim], PerRow: [q_size]
  const float* k_norm = nullptr;               // [head_dim], PerRow: [kv_size]
  const float* sinks = nullptr;                // [num_heads]
  Linear output_gate;                          // [q_size, hidden_size]
  Linear o;                                    // [hidden_size, q_size]
  const float* post_attention_norm = nullptr;  // [hidden_size]
  const float* pre_mlp_norm = nullptr;         // [hidden_size]
  Linear gate_up;                              // [2 dense_size, hidden_size]: gate, then up
  Linear down;                                 // [hidden_size, dense_size]
  Linear shared_gate;                          // [1, hidden_size] of the shared expert
  Linear router;                               // [experts, hidden_size]
  const float* score_correction = nullptr;     // [experts]
  ops::ExpertMatrix expert_gate_up;            // as gate_up, of each expert
  ops::ExpertMatrix expert_down;               // as down
  const float* post_mlp_norm = nullptr;        // [hidden_size]
};

// What a tensor is part of.
enum class TensorPart : std::uint8_t {
  Embedding,
  FinalNorm,
  Head,
  PreAttentionNorm,
  Qkv,
  QkvBias,
  QkvOrder,
  QNorm,
  KNorm,
  Sinks,
  OutputGate,
  O,
  OBias,
  OOrder,
  PostAttentionNorm,
  PreMlpNorm,
  Router,
  RouterBias,
  ScoreCorrection,
  GateUp,
  GateUpBias,
  GateUpOrder,
  Down,
  DownBias,
  DownOrder,
  SharedGateUp,
  SharedDown,
  SharedGate,
  PostMlpNorm,
};
const char* part_name(TensorPart part);
// Where the order of a matrix's columns goes. Throws other for one that has none.
TensorPart order_of(TensorPart matrix);

// Where a tensor goes. Several may fill one part: q, k and v are rows of Qkv.
struct TensorSlot {
  TensorPart part = TensorPart::Embedding;
  std::uint32_t layer = 0;      // 0 for what is no layer's
  std::uint32_t expert = 0;     // 0 where there is one MLP
  std::uint32_t first_row = 0;  // of a vector: its first element
};

// A tensor as it comes: rows of a matrix, or elements of a vector.
struct TensorView {
  WeightFormat format;                   // of a vector one that is not quantized
  std::span<const std::uint64_t> shape;  // [rows, columns], or [elements]
  std::span<const std::byte> data;       // little-endian, row-major, any alignment: ops::RowSource
  std::span<const float> scales{};       // [rows, groups] of what is quantized
  std::span<const float> offsets{};      // the same, where the format has them
};

class Weights {
 public:
  // Takes the memory; contents are still to be set. The device outlives it.
  Weights(Backend& device, const DecoderSpec& spec);

  // What the constructor takes from a pool.
  static std::uint64_t bytes_needed(const Sizes& sizes, const DecoderSpec& spec);

  // Copies one tensor, converting format and layout (ops::pack_rows). Throws other for a slot that
  // the model has not, rows that do not fit, a size that is not the shape's, a format that does not
  // become the slot's, what was set before, or an order that does not name each
  // column once.
  void set(const TensorSlot& slot, const TensorView& tensor);

  // Everything at once, normal with the deviation of trained models (0.02): matrices, biases and
  // sinks around 0, norms around 1.
  void fill_random(std::uint64_t seed);

  // Waits until all is on the device. Throws other naming what was not set.
  void check_complete() const;

  std::uint64_t bytes() const { return range_.bytes(); }

  ops::PackedWeights embedding;       // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;   // [num_layers]
  const float* final_norm = nullptr;  // [hidden_size]
  Linear head;  // [vocab_size, hidden_size]; the embedding itself where they are tied

 private:
  struct Rows {
    std::uint32_t first;
    std::uint32_t count;
  };
  // What a part's tensors fill together.
  struct Target {
    bool is_vector = false;
    bool is_order = false;      // a vector, each of its columns once
    ops::WeightShape matrix{};  // of a vector: [1, its length]
    std::byte* data = nullptr;
    float fill = 0;  // what a vector is around, when weights are random
    std::vector<Rows> set{};

    std::uint32_t length() const { return is_vector ? matrix.num_columns : matrix.num_rows; }
    bool is_complete() const;
  };
  using Key = std::tuple<std::uint32_t, TensorPart, std::uint32_t>;  // layer, part, expert
  struct Size {
    std::uint32_t num_rows;
    std::uint32_t num_columns;
  };

  Weights(const Sizes& sizes, const DecoderSpec& spec) : sizes_(sizes), spec_(spec) {}
  // Places everything from base_ on; with a null base_ only to learn the size.
  void place_all();
  LayerWeights place_layer(std::uint32_t index);
  void place_attention(std::uint32_t layer, const AttentionSpec& spec, LayerWeights& weights);
  void place_mlp(std::uint32_t layer, const MlpSpec& mlp, LayerWeights& weights);
  ops::PackedWeights place_matrix(const TensorSlot& slot, Size size, WeightFormat format);
  const float* place_vector(const TensorSlot& slot, std::uint32_t length, float fill);
  const std::uint32_t* place_order(const TensorSlot& slot, std::uint32_t num_columns);
  const float* place_norm(const TensorSlot& slot, NormKind kind);
  Linear place_linear(const TensorSlot& slot, Size size, const LinearSpec& linear);
  ops::ExpertMatrix place_experts(const TensorSlot& slot, Size size, const MlpSpec& mlp);
  std::byte* place(std::uint64_t bytes);
  void add_target(const TensorSlot& slot, Target target);

  Backend* device_ = nullptr;
  const Sizes& sizes_;
  const DecoderSpec& spec_;
  Layout layout_;
  PoolRange range_;
  std::byte* base_ = nullptr;
  std::map<Key, Target> targets_;
};

}  // namespace inferno::engine
