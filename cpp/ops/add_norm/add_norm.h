// A branch of a layer joins the residual stream, through a norm of its own where the layer has one
// ("sandwich norm": Ding et al., "CogView", 2021; Gemma 2, OLMo 2), and scaled (Granite).
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct AddNormArgs {
  float* y;                   // [T, H] the branch; overwritten
  bool normalise;             // whether the norm below comes first
  const float* weight;        // [H] of the norm, or null for none
  float eps;                  // of the norm
  float scale;                // of what is added
  std::uint32_t num_tokens;   // T
  std::uint32_t hidden_size;  // H
  float* x;                   // [T, H] in place
};

// x[t] += scale * (normalise ? rms_norm(y[t]) : y[t])
void add_norm(const OpContext& context, const AddNormArgs& args);

}  // namespace inferno::ops
