// Columns of the inputs in the order in which a matrix has them (engine/spec/spec.h, LinearSpec).
#pragma once

#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

struct GatherColumnsArgs {
  const float* x;              // [T, K]
  std::uint32_t num_tokens;    // T
  std::uint32_t num_columns;   // K
  const std::uint32_t* order;  // [K], each below K
  float* out;                  // [T, K]; not x
};

// out[t, k] = x[t, order[k]].
void gather_columns(const OpContext& context, const GatherColumnsArgs& args);

}  // namespace inferno::ops
