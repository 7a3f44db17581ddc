// AttentionRule in the kernels: from a product q · k to what the softmax takes.
//
// The kernels that have kPlain are for layers that only scale. What a rule asks for beside that is
// decided as they run: a window takes masks of a tile's first positions as the causal ones of its
// last; a sink is the first of the scores that are summed up. So only soft-caps cost a score more.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/attention/attention_rule.h"
#include "ops/attention/cuda/attention_mma.cuh"

namespace inferno::ops::cuda {

struct ScoreRule {
  float to_log2;         // from a product, or the tanh that it became, to units of log 2
  float to_tanh;         // from a product to the exponent in tanh_of; 0: no soft-cap
  std::uint32_t window;  // positions that are seen, at most
  const float* sinks;    // [num_heads] or null

  bool is_plain() const { return to_tanh == 0.0F && window == ~0U && sinks == nullptr; }

  // The first of `num_positions` positions that the last of them sees.
  template <bool kPlain>
  __device__ std::uint32_t first_seen(std::uint32_t num_positions) const {
    if constexpr (kPlain) return 0;
    return num_positions > window ? num_positions - window : 0;
  }

  template <bool kPlain>
  __device__ bool has_sinks() const {
    return !kPlain && sinks != nullptr;
  }

  template <bool kPlain>
  __device__ bool has_softcap() const {
    return !kPlain && to_tanh != 0.0F;
  }

  // tanh(scale / softcap * product), within 2^-21: through the exponential and a reciprocal, for
  // tanh.approx is eight bits short of that. Times the cap, what is lost counts.
  __device__ float tanh_of(float product) const {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0F + exp2_fast(product * to_tanh)));
    return fmaf(-2.0F, inverse, 1.0F);
  }

  // The score of a product, in units of log 2.
  template <bool kPlain>
  __device__ float score_log2(float product) const {
    return (has_softcap<kPlain>() ? tanh_of(product) : product) * to_log2;
  }
};

// What the weights of a row are taken against: the largest score so far; 0 where it has seen none,
// so that weights and rescaling come out as 0 and change nothing.
template <bool kPlain>
__device__ float shift_of(float largest) {
  return kPlain || largest != -INFINITY ? largest : 0.0F;
}

// k_scale: of the keys that the products are with.
inline ScoreRule score_rule(const AttentionRule& rule, float k_scale) {
  const bool capped = rule.softcap > 0.0F;
  const float scale = rule.scale * k_scale;
  return {.to_log2 = (capped ? rule.softcap : scale) * kLog2E,
          .to_tanh = capped ? 2.0F * kLog2E * scale / rule.softcap : 0.0F,
          .window = rule.window > 0 ? rule.window : ~0U,
          .sinks = rule.sinks};
}

// Positions of a tile that are seen, from its beginning; the end may be beyond the tile.
struct SeenInTile {
  std::uint32_t first;
  std::uint32_t end;
  __device__ bool operator()(std::uint32_t position) const {
    return position >= first && position < end;
  }
};

}  // namespace inferno::ops::cuda
