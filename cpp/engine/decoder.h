// A spec and its weights, put together once for the forward pass: each layer with all that its
// parts read, so that no part looks at the whole model and nothing is remembered between two parts.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory/kv_cache.h"
#include "engine/spec/spec.h"
#include "engine/weights/weights.h"

namespace inferno::engine {

// A norm with its weight.
struct Norm {
  NormKind kind = NormKind::None;
  const float* weight = nullptr;  // [hidden_size], or null for none
  float eps = 0;

  bool is_there() const { return kind != NormKind::None; }
};

// What made h, which a part reads: a norm, a product or experts. The latter two can leave the scale
// of the norm to the products that read h.
struct InputFrom {
  const Linear* product = nullptr;
  bool experts = false;
};

// What follows a branch of a layer: x += scale * after(y), then h = next(x) for the next part.
struct Join {
  Norm after;
  float scale = 1;
  Norm next;             // None: h = x
  bool is_last = false;  // nobody reads h

  // Whether a product can add y itself, and leave h.
  bool is_plain() const { return !after.is_there() && (next.weight != nullptr || is_last); }
};

struct Layer {
  const AttentionSpec* attention = nullptr;
  const MlpSpec* mlp = nullptr;
  const LayerWeights* weights = nullptr;
  const ops::KvLayer* kv = nullptr;
  Norm pre_attention;
  InputFrom attention_input{};
  Join after_attention{};
  InputFrom mlp_input{};
  Join after_mlp{};
};

struct Decoder {
  // All three outlive it.
  Decoder(const DecoderSpec& spec, const Weights& weights, const KvCache& kv);

  const DecoderSpec& spec;
  const Weights& weights;
  Norm first;  // what the first layer reads of the embedded tokens; None: these themselves
  std::vector<Layer> layers;
  Norm last;  // before the logits
};

}  // namespace inferno::engine
