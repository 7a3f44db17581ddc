// The start of a step on the GPU, in one launch: embedding, the first norm, the angles of rope.
// Contracts as in embed.h, rms_norm.h and rope.h, h in elements of 16 bits, rounded once. A token's
// bits depend on its own inputs only.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_op.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kNoSeat = 0xFFFFFFFF;  // token_ids holds the token

// The angles that the layers of one kind share.
struct RopeTable {
  const float* inv_freq = nullptr;  // [half]
  std::uint32_t half = 0;           // rotary_dim / 2
  float scale = 1;                  // of cosines and sines
  float* cos_sin = nullptr;         // [T, 2, half] as rope_angles makes them
};

inline constexpr std::uint32_t kMaxRopes = 4;

struct EmbedCudaArgs {
  DeviceMatrix table;  // [vocab_size, H]; H a multiple of 8 up to kMaxHiddenSize
  const std::uint32_t* token_ids = nullptr;    // [T]
  const std::uint32_t* feed_seats = nullptr;   // [T] kNoSeat, or the seat whose token is fed
  const std::uint32_t* sampled_ids = nullptr;  // [max_batch_size] the last token of each seat
  std::uint32_t num_tokens = 0;                // T
  float scale = 1;                             // of the rows
  const std::uint32_t* positions = nullptr;    // [T]
  RopeTable ropes[kMaxRopes] = {};             // the first num_ropes
  std::uint32_t num_ropes = 0;
  RowNorm norm{};      // of the first layer
  float* x = nullptr;  // [T, H] the rows of the table times scale
  void* h = nullptr;   // [T, H] elements: norm(x)
};

// A fed or given id that is not below vocab_size counts as 0 (the host has checked the given ones).
void embed_cuda(const CudaOp& op, const EmbedCudaArgs& args);

}  // namespace inferno::ops::cuda
