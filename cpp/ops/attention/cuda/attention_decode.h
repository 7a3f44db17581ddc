// Attention of one query token per sequence: the part of attention_cuda for decode_seqs.
#pragma once

#include <cstddef>

#include "ops/attention/cuda/attention_cuda.h"

namespace inferno::ops::cuda {

void attention_decode(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args);

std::size_t attention_decode_workspace_bytes(std::uint32_t head_dim);

}  // namespace inferno::ops::cuda
