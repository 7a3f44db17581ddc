// Embedding: the rows of a table that stand for tokens.
#pragma once

#include <cstdint>
#include <span>

#include "ops/base/op_context.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops {

// out[t, :] = table[token_ids[t], :], converted to float without loss.
// table [vocab_size, H] is packed as for linear, so that tied embeddings need one copy only;
// token_ids [T]; out [T, H]. Throws invalid_batch if an id is not below vocab_size; nothing is
// written then.
void embed(const OpContext& context, const PackedWeights& table,
           std::span<const std::uint32_t> token_ids, float* out);

}  // namespace inferno::ops
