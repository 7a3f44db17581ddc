// A decoder as data: everything that differs between families of models. A file per family in Rust
// (src/checkpoint/families) makes it from a checkpoint's config.json; both backends run it.
//
// One layer, in the order of computation:
//   h = pre_attention(x);  a = attention(rope(q), rope(k), v)
//                          a *= sigmoid(gate(h)), where there is an output gate
//                          x += residual_scale * post_attention(o(a))
//   h = pre_mlp(x);        m = down(activation(gate(h)) * up(h)), or the experts' sum of such
//                          x += residual_scale * post_mlp(m)
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/limits.h"
#include "ops/base/dtype.h"
#include "ops/experts/experts.h"
#include "ops/experts/route.h"
#include "ops/glu/activation.h"
#include "ops/linear/weight_format.h"

namespace inferno::engine {

using ops::WeightFormat;

// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. A weight that a checkpoint
// keeps as its difference from one (Gemma) has had the one added when it comes here.
enum class NormKind : std::uint8_t { None, Rms, RmsUnweighted };

struct NormSpec {
  NormKind kind = NormKind::None;
  float eps = 0;

  bool is_there() const { return kind != NormKind::None; }
};

// How a matrix is read: row by row, as a factor of a product, or as one of many of which each token
// takes a few.
enum class MatrixRole : std::uint8_t { Embedding, Linear, Experts };

struct LinearSpec {
  bool bias = false;
  WeightFormat format = ops::Dtype::BF16;
  // The matrix's columns stand in an order of their own, as GPTQ's act-order makes groups of
  // columns that are no neighbours: with the weights comes which input belongs to each.
  bool ordered = false;
};

// The norm of q and k before they are turned: one for each head, or one over all heads of a token.
enum class QkNorm : std::uint8_t { None, PerHead, PerHeadUnweighted, PerRow };

// An AttentionSpec without rotation (NoPE) has this for its rope.
inline constexpr std::uint32_t kNoRope = 0xFFFFFFFF;

struct AttentionSpec {
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  LinearSpec qkv{};
  LinearSpec o{};
  QkNorm qk_norm = QkNorm::None;
  float qk_norm_eps = 0;
  std::uint32_t rope = kNoRope;  // index into DecoderSpec::ropes
  std::uint32_t window = 0;      // positions that a token sees, itself included; 0: all
  float scale = 0;               // of the scores
  float softcap = 0;             // c of c * tanh(score / c); 0: none
  bool sinks = false;            // a logit of each head that joins the softmax and has no value
  bool output_gate = false;      // each element of the output times the sigmoid of its gate's
  WeightFormat gate = ops::Dtype::BF16;  // of the output gate's matrix
  float k_scale = 1;                     // of keys in fp8; else 1
  float v_scale = 1;

  std::uint32_t q_size() const { return num_heads * head_dim; }
  std::uint32_t kv_size() const { return num_kv_heads * head_dim; }
  std::uint32_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

// Su et al., "RoFormer", 2021. The frequencies come ready: what kind of scaling made them is known
// where config.json is read.
struct RopeSpec {
  std::vector<float> inv_freq{};  // [rotary_dim / 2]; the first rotary_dim elements of a head turn
  float scale = 1;                // of cosine and sine (the attention factor of YaRN and LongRoPE)
  bool interleaved = false;       // element 2i turns with 2i + 1, else i with i + rotary_dim / 2
  // q is multiplied by 1 + beta * ln(1 + floor(position / original positions)); beta 0: it is not.
  float query_beta = 0;
  std::uint32_t query_original_positions = 1;
};

enum class MlpKind : std::uint8_t { Dense, Experts };

// An expert that every token goes through, beside those that a router chooses: a dense MLP.
struct SharedExpertSpec {
  std::uint32_t intermediate_size = 0;  // 0: there is none
  WeightFormat gate_up = ops::Dtype::BF16;
  WeightFormat down = ops::Dtype::BF16;
  bool has_gate = false;  // its output is multiplied by the sigmoid of one gate for each token
  WeightFormat gate = ops::Dtype::BF16;
};

struct MlpSpec {
  MlpKind kind = MlpKind::Dense;
  std::uint32_t intermediate_size = 0;  // of an expert, where there are several
  ops::Activation activation{};
  LinearSpec gate_up{};
  LinearSpec down{};
  // Of experts.
  std::uint32_t num_experts = 1;
  std::uint32_t experts_per_token = 1;
  LinearSpec router{};
  ops::RouterKind router_kind = ops::RouterKind::SoftmaxTopK;
  bool score_correction = false;  // of sigmoids: added to an expert's score for the choice only
  bool renormalise = false;       // the weights of the chosen ones to a sum of 1
  float routed_scale = 1;         // of what is routed; not of the shared expert
  SharedExpertSpec shared{};

  // Of the MLP that every token goes through, alone or beside the routed ones; 0: there is none.
  std::uint32_t dense_size() const {
    return kind == MlpKind::Dense ? intermediate_size : shared.intermediate_size;
  }
};

struct LayerSpec {
  NormSpec pre_attention{};
  NormSpec post_attention{};
  NormSpec pre_mlp{};
  NormSpec post_mlp{};
  AttentionSpec attention{};
  MlpSpec mlp{};
  float residual_scale = 1;
};

struct DecoderSpec {
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_size = 0;
  ops::Dtype activation = ops::Dtype::BF16;  // between the parts of a GPU; a CPU computes in float
  ops::Dtype kv = ops::Dtype::BF16;          // fp8, or as the activations
  WeightFormat embedding = ops::Dtype::BF16;
  float embedding_scale = 1;
  bool tied_embeddings = false;  // the head is the embedding itself
  LinearSpec head{};
  NormSpec final_norm{};
  float logit_scale = 1;
  float logit_softcap = 0;  // c of c * tanh(logit / c), after the scale; 0: none
  std::vector<RopeSpec> ropes{};
  std::vector<LayerSpec> layers{};

  std::uint32_t num_layers() const { return static_cast<std::uint32_t>(layers.size()); }
};

// The largest of all layers, for what they share.
struct LayerMaxima {
  std::uint32_t q_size = 0;
  std::uint32_t qkv_size = 0;
  std::uint32_t output_gate_size = 0;   // 0 where no layer has one
  std::uint32_t intermediate_size = 0;  // of dense ones, the shared expert among them
  std::uint32_t num_experts = 0;        // 0 where no layer has any
  std::uint32_t experts_per_token = 0;
  bool has_shared_gate = false;
  std::uint32_t ordered_columns = 0;  // of a matrix with an order; 0 where none has one
};
LayerMaxima maxima_of(const DecoderSpec& spec);

// Of the first layer that has experts, or null.
const MlpSpec* first_experts(const DecoderSpec& spec);
ops::ExpertsShape experts_shape(const DecoderSpec& spec, const MlpSpec& mlp);

// Most ropes of one model: one for layers with a window, one for the others, and room.
inline constexpr std::uint32_t kMaxRopes = 4;

// Whether any matrix is codes and scales.
bool has_codes(const DecoderSpec& spec);

// Throws other naming the field that is out of range. After it no size computed from the spec
// overflows 64 bits.
void check_spec(const DecoderSpec& spec);
void check_limits(const ModelLimits& limits, const DecoderSpec& spec);

}  // namespace inferno::engine
