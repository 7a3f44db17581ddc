// Attention of several query tokens per sequence: the part of attention_cuda for tiles.
#pragma once

#include <cstdint>

#include "ops/attention/cuda/attention_cuda.h"

namespace inferno::ops::cuda {

// Rows of a block: query tokens times the query heads that share a KV head.
inline constexpr std::uint32_t kPrefillRows = 128;

void attention_prefill(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args);

}  // namespace inferno::ops::cuda
