// Embedding: the rows of a table that stand for tokens.
#pragma once

#include <cstdint>
#include <span>

#include "ops/base/op_context.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops {

struct EmbedArgs {
  PackedWeights table;                       // [vocab_size, H], packed as for linear
  std::span<const std::uint32_t> token_ids;  // [T]
  float scale;                               // of every element, as in Gemma and Granite; 1: none
  float* out;                                // [T, H]
};

// out[t, :] = table[token_ids[t], :] * scale; the table's elements become floats without loss.
// The table is packed as for linear, so that tied embeddings need one copy only. Throws
// invalid_batch if an id is not below vocab_size; nothing is written then.
void embed(const OpContext& context, const EmbedArgs& args);

}  // namespace inferno::ops
