// The weights of one model in one range of the pool: what the forward pass reads, and how it is
// filled from a checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/backend.h"
#include "engine/layout.h"
#include "engine/memory_pool.h"
#include "engine/shape.h"
#include "ops/linear/packed_weights.h"

namespace inferno::engine {

// A matrix in the backend's layout, and its bias.
struct Linear {
  ops::PackedWeights weight;    // [outputs, inputs]
  const float* bias = nullptr;  // [outputs], or null for none
};

struct LayerWeights {
  const float* input_norm = nullptr;  // [hidden_size]
  Linear qkv;                         // [q_size + 2 kv_size, hidden_size]: q, k, v below each other
  Linear o;                           // [hidden_size, q_size]
  const float* post_attention_norm = nullptr;  // [hidden_size]
  Linear gate_up;                              // [2 intermediate_size, hidden_size]: gate, then up
  Linear down;                                 // [hidden_size, intermediate_size]
};

// One checkpoint tensor, as it comes with set.
struct TensorView {
  ops::Dtype dtype;
  std::span<const std::uint64_t> shape;
  std::span<const std::byte> data;  // little-endian, row-major, any alignment
};

class Weights {
 public:
  // Takes the memory; contents are still to be set. The device outlives it.
  Weights(Backend& device, const ModelShape& shape);

  // What the constructor takes from a pool.
  static std::uint64_t bytes_needed(const Sizes& sizes, const ModelShape& shape);

  // Copies one tensor by its Hugging Face name, converting element type and layout. Throws other
  // for an unknown name, a shape or size that is not the model's, or a tensor that was set before.
  void set(std::string_view name, const TensorView& tensor);

  // Every tensor at once: normal values with the deviation of trained models (0.02), norms 1,
  // biases 0.
  void fill_random(std::uint64_t seed);

  // Waits until all is on the device. Throws other naming what was not set.
  void check_complete() const;

  std::uint64_t bytes() const { return range_.bytes(); }

  ops::PackedWeights embedding;       // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;   // [num_layers]
  const float* final_norm = nullptr;  // [hidden_size]
  Linear lm_head;  // [vocab_size, hidden_size]; the embedding itself where they are tied

 private:
  // Where a checkpoint's tensor goes.
  struct Target {
    std::string name;
    bool is_vector = false;
    std::uint32_t num_rows = 0;  // 1 for a vector
    std::uint32_t num_columns = 0;
    ops::WeightShape matrix{};    // the whole fused matrix
    std::uint32_t first_row = 0;  // of this tensor in it
    std::byte* data = nullptr;    // of the fused matrix or the vector
    float fill = 0;               // of a vector, when weights are random
    bool is_alias = false;        // a second name for memory of another target: checked, not copied
    bool is_set = false;

    MatrixRows rows() const { return {matrix, data, first_row, num_rows}; }
  };
  struct Part {
    const char* name;
    std::uint32_t num_rows;
  };

  using Parts = std::initializer_list<Part>;

  Weights(const Sizes& sizes, const ModelShape& shape) : sizes_(sizes), shape_(shape) {}
  // Places everything from base_ on; with a null base_ only to learn the size.
  void place_all();
  LayerWeights place_layer(std::uint32_t index);
  ops::PackedWeights place_matrix(const std::string& prefix, Parts parts,
                                  std::uint32_t num_columns);
  const float* place_vector(const std::string& prefix, Parts parts, float fill);
  Linear place_linear(const std::string& prefix, Parts parts, std::uint32_t num_columns,
                      bool with_bias);
  std::byte* place(std::uint64_t bytes);
  void add_target(Target target);
  static void check(const Target& target, const TensorView& tensor);

  Backend* device_ = nullptr;
  const Sizes& sizes_;
  ModelShape shape_;
  Layout layout_;
  PoolRange range_;
  std::byte* base_ = nullptr;
  std::vector<Target> targets_;                           // in the order of the forward pass
  std::unordered_map<std::string, std::size_t> by_name_;  // -> targets_
};

}  // namespace inferno::engine
