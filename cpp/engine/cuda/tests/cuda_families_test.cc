// Goal: what a spec can say, a GPU computes as the CPU does, which the goldens hold against
// transformers. Method: small decoders in the manner of each family with the same random weights on
// both; whole prompts, chunks and decodes past every window, in both modes; then the same bits
// alone and in a batch with `deterministic`.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/testing/test_model.h"

namespace inferno::engine {
namespace {

using test::prompt;
using test::Query;
using test::same_bits;
using test::Step;

struct Like {
  std::string name;
  DecoderSpec spec;
};

void each(DecoderSpec& spec, const std::function<void(LayerSpec&, std::size_t)>& change) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) change(spec.layers[i], i);
}

DecoderSpec base(std::uint32_t head_dim) {
  LlamaShape shape = test::small_shape(ops::Dtype::BF16);
  shape.hidden_size = 136;
  shape.intermediate_size = 200;
  shape.num_layers = 4;
  shape.head_dim = head_dim;
  return spec_of(shape);
}

DecoderSpec gemma(bool third) {
  DecoderSpec spec = base(third ? 64 : 256);
  spec.embedding_scale = 11.6875F;
  spec.ropes.push_back(spec.ropes[0]);
  for (float& frequency : spec.ropes[1].inv_freq) frequency *= 0.125F;
  if (!third) spec.logit_softcap = 30;
  each(spec, [&](LayerSpec& layer, std::size_t i) {
    layer.post_attention = layer.post_mlp = layer.pre_mlp;
    layer.mlp.activation = {ops::ActivationKind::GeluTanh};
    layer.attention.window = i % 2 == 0 ? 24 : 0;
    layer.attention.rope = i % 2 == 0 ? 0 : 1;
    layer.attention.softcap = third ? 0 : 50;
    layer.attention.qk_norm = third ? QkNorm::PerHead : QkNorm::None;
    layer.attention.qk_norm_eps = 1e-6F;
  });
  return spec;
}

DecoderSpec olmo() {
  DecoderSpec spec = base(32);
  each(spec, [](LayerSpec& layer, std::size_t i) {
    layer.post_attention = layer.post_mlp = layer.pre_mlp;
    layer.pre_attention = layer.pre_mlp = NormSpec{};
    layer.attention.qk_norm = QkNorm::PerRow;
    layer.attention.qk_norm_eps = 1e-5F;
    layer.attention.window = i == 3 ? 0 : 33;
  });
  return spec;
}

DecoderSpec experts(bool clamped) {
  DecoderSpec spec = base(64);
  each(spec, [&](LayerSpec& layer, std::size_t i) {
    if (i == 1 && !clamped) return;  // a dense layer among them
    layer.mlp.kind = MlpKind::Experts;
    layer.mlp.intermediate_size = 72;
    layer.mlp.num_experts = 8;
    layer.mlp.experts_per_token = clamped ? 4 : 2;
    layer.mlp.renormalise = !clamped;
    layer.attention.qk_norm = clamped ? QkNorm::None : QkNorm::PerHead;
    layer.attention.qk_norm_eps = 1e-6F;
    if (!clamped) return;
    layer.mlp.router_kind = ops::RouterKind::TopKSoftmax;
    layer.mlp.activation = {ops::ActivationKind::ClampedSilu, 1.702F, 7};
    layer.mlp.router.bias = layer.mlp.gate_up.bias = layer.mlp.down.bias = true;
    layer.attention.qkv.bias = layer.attention.o.bias = true;
    layer.attention.sinks = true;
    layer.attention.window = i % 2 == 0 ? 20 : 0;
  });
  return spec;
}

// Half of each head turns, neighbours together; every second layer not at all; queries grow.
DecoderSpec ropes() {
  DecoderSpec spec = base(64);
  RopeSpec& rope = spec.ropes[0];
  rope.inv_freq.resize(16);
  rope.interleaved = true;
  rope.scale = 1.25F;
  rope.query_beta = 0.3F;
  rope.query_original_positions = 16;
  spec.logit_scale = 0.25F;
  each(spec, [](LayerSpec& layer, std::size_t i) {
    layer.residual_scale = 0.5F;
    layer.attention.qkv.bias = true;
    layer.attention.qk_norm = i == 2 ? QkNorm::PerHead : QkNorm::None;
    layer.attention.qk_norm_eps = 1e-6F;
    if (i % 2 == 1) layer.attention.rope = kNoRope;
  });
  spec.layers[3].attention.qk_norm = QkNorm::PerHeadUnweighted;
  return spec;
}

// Sizes that the streamed and the tiled kernels of the experts take; a norm after one of them.
DecoderSpec wide_experts() {
  LlamaShape shape = test::small_shape(ops::Dtype::BF16);
  shape.hidden_size = 192;
  shape.intermediate_size = 200;
  shape.num_layers = 4;
  shape.head_dim = 64;
  DecoderSpec spec = spec_of(shape);
  each(spec, [](LayerSpec& layer, std::size_t i) {
    layer.residual_scale = 0.5F;
    if (i == 1) return;
    layer.mlp.kind = MlpKind::Experts;
    layer.mlp.intermediate_size = 128;
    layer.mlp.num_experts = 8;
    layer.mlp.experts_per_token = 2;
    layer.mlp.renormalise = true;
    if (i == 3) layer.post_mlp = layer.pre_mlp;
  });
  return spec;
}

// Output gates; a router of sigmoids, whose experts stand beside one that all tokens share; norms
// on both sides, so that the sum of them is normed. Every expert is chosen: under norms another one
// would move a row far.
DecoderSpec afmoe() {
  DecoderSpec spec = base(64);
  each(spec, [](LayerSpec& layer, std::size_t i) {
    layer.post_attention = layer.post_mlp = layer.pre_mlp;
    layer.attention.output_gate = true;
    layer.attention.qk_norm = QkNorm::PerHead;
    layer.attention.qk_norm_eps = 1e-5F;
    layer.attention.window = i == 3 ? 0 : 24;
    if (i == 3) layer.attention.rope = kNoRope;
    if (i == 0) return;
    layer.mlp.kind = MlpKind::Experts;
    layer.mlp.intermediate_size = 72;
    layer.mlp.num_experts = layer.mlp.experts_per_token = 4;
    layer.mlp.router_kind = ops::RouterKind::Sigmoid;
    layer.mlp.score_correction = layer.mlp.renormalise = true;
    layer.mlp.routed_scale = 2.5F;
    layer.mlp.shared.intermediate_size = 72;
  });
  return spec;
}

// An expert that all tokens share, with a gate and without; its sum with the others joins the
// stream, in the last layer under a norm.
DecoderSpec shared_experts() {
  DecoderSpec spec = wide_experts();
  each(spec, [](LayerSpec& layer, std::size_t i) {
    layer.attention.output_gate = i == 2;
    if (layer.mlp.kind == MlpKind::Dense) return;
    layer.mlp.shared = {.intermediate_size = i == 0 ? 200U : 64U, .has_gate = i != 2};
    if (i != 2) return;
    layer.mlp.router_kind = ops::RouterKind::Sigmoid;
    layer.mlp.score_correction = true;
  });
  return spec;
}

std::vector<Like> likes() {
  return {{"Gemma 2", gemma(false)},  {"Gemma 3", gemma(true)},
          {"OLMo 3", olmo()},         {"Qwen 3 MoE", experts(false)},
          {"gpt-oss", experts(true)}, {"wide experts", wide_experts()},
          {"AFMoE", afmoe()},         {"shared experts", shared_experts()},
          {"ropes", ropes()}};
}

ModelLimits limits() {
  return {.block_size = 16,
          .kv_bytes = 16 << 20,
          .max_batch_size = 40,
          .max_step_tokens = 256,
          .max_seq_len = 256,
          .end_token_ids = {7}};
}

struct Loaded {
  Context context;
  std::uint32_t model;

  Loaded(const DecoderSpec& spec, bool on_gpu, bool deterministic)
      : context({.num_threads = 2,
                 .pool_bytes = 256 << 20,
                 .backend = on_gpu ? BackendKind::Cuda : BackendKind::Cpu,
                 .deterministic = deterministic}) {
    model = context.add_model(spec, limits()).model;
    context.fill_random(model, 11);
    context.finish_model(model);
    test::bind_seats(context, model, limits().max_batch_size);
  }

  std::vector<float> run(const std::vector<Query>& queries) {
    const StepOutput output = context.run_step(model, Step(queries).batch());
    return {output.logits.begin(), output.logits.end()};
  }
};

Query part(const std::vector<std::uint32_t>& ids, std::size_t first, std::size_t end,
           std::uint32_t block) {
  return {.token_ids = {ids.begin() + static_cast<std::ptrdiff_t>(first),
                        ids.begin() + static_cast<std::ptrdiff_t>(end)},
          .first_position = static_cast<std::uint32_t>(first),
          .blocks = test::blocks_from(block, 8),
          .seat = block / 8};
}

// How near a like's rows of logits are: within 0.05 of what is largest, as weights, K, V and what
// goes between products are rounded to bf16. With experts a tenth of the rows may be farther: a
// rounding may choose the other one of two experts that are nearly as likely.
class Nearness {
 public:
  explicit Nearness(const DecoderSpec& spec) : vocab_size_(spec.vocab_size) {
    for (const LayerSpec& layer : spec.layers) {
      if (layer.mlp.kind == MlpKind::Experts) one_in_ = 10;
    }
  }

  void see(const std::vector<float>& got, const std::vector<float>& expected) {
    REQUIRE(got.size() == expected.size());
    for (std::size_t row = 0; row < got.size(); row += vocab_size_) {
      bool is_finite = true;
      double worst = 0;
      double scale = 0;
      for (std::size_t i = row; i < row + vocab_size_; ++i) {
        const double error = std::abs(double{got[i]} - expected[i]);
        is_finite = is_finite && std::isfinite(error);
        worst = std::max(worst, error);
        scale = std::max(scale, std::abs(double{expected[i]}));
      }
      REQUIRE(is_finite);
      ++rows_;
      if (worst <= 0.05 * scale) continue;
      ++far_;
      MESSAGE("row " << rows_ << ": " << worst << " of " << scale);
    }
  }

  void check() const { CHECK(far_ * one_in_ <= (one_in_ == 1 ? 0 : rows_)); }

 private:
  std::size_t vocab_size_;
  std::size_t one_in_ = 1;
  std::size_t rows_ = 0;
  std::size_t far_ = 0;
};

TEST_CASE(
    "GPU: decoders of every kind give the CPU's logits, past windows, in chunks and decodes") {
  const auto ids = prompt(120, 3);
  for (const Like& like : likes()) {
    CAPTURE(like.name);
    Loaded cpu(like.spec, false, false);
    for (const bool deterministic : {false, true}) {
      CAPTURE(deterministic);
      Loaded gpu(like.spec, true, deterministic);
      Nearness nearness(like.spec);
      for (const std::size_t length : {1U, 21U, 64U, 100U}) {
        CAPTURE(length);
        nearness.see(gpu.run({part(ids, 0, length, 8)}), cpu.run({part(ids, 0, length, 8)}));
      }
      // A chunk, then three sequences at once: a chunk, a decode and a prompt.
      for (Loaded* loaded : {&cpu, &gpu}) loaded->run({part(ids, 0, 70, 0), part(ids, 0, 90, 8)});
      const std::vector<Query> mixed = {part(ids, 70, 110, 0), part(ids, 90, 91, 8),
                                        part(ids, 0, 40, 16)};
      nearness.see(gpu.run(mixed), cpu.run(mixed));
      // Decodes alone, from a graph.
      for (std::size_t step = 0; step < 3; ++step) {
        const std::vector<Query> decodes = {part(ids, 110 + step, 111 + step, 0),
                                            part(ids, 91 + step, 92 + step, 8),
                                            part(ids, 40 + step, 41 + step, 16)};
        nearness.see(gpu.run(decodes), cpu.run(decodes));
      }
      nearness.check();
    }
  }
}

TEST_CASE("GPU: decoders of every kind keep a sequence's bits with deterministic") {
  const auto ids = prompt(120, 5);
  for (const Like& like : likes()) {
    CAPTURE(like.name);
    Loaded gpu(like.spec, true, true);
    const auto alone = gpu.run({part(ids, 0, 100, 0)});
    for (const std::size_t size : {1U, 7U, 64U, 99U}) {
      CAPTURE(size);
      std::vector<float> chunked;
      for (std::size_t first = 0; first < 100; first += size) {
        chunked = gpu.run({part(ids, first, std::min<std::size_t>(100, first + size), 0)});
      }
      CHECK(same_bits(chunked, alone));
    }
    const auto batch = gpu.run(
        {part(ids, 0, 17, 8), part(ids, 0, 100, 0), part(ids, 0, 1, 16), part(ids, 0, 64, 24)});
    CHECK(same_bits(std::span(batch).subspan(alone.size(), alone.size()), alone));
  }
}

}  // namespace
}  // namespace inferno::engine
