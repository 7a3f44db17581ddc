// The arrays of one step on a GPU, and the page-locked memory that they come from.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/batch.h"
#include "engine/cuda_memory.h"
#include "ops/attention_cuda.h"
#include "ops/sample.h"

namespace inferno::engine {

// How many of what a step has, padding included.
struct StepCounts {
  std::uint32_t num_tokens = 0;   // T
  std::uint32_t num_seqs = 0;     // S
  std::uint32_t num_rows = 0;     // R, of logits
  std::uint32_t num_decodes = 0;  // sequences that the decode kernel takes
  std::uint32_t num_tiles = 0;    // of the prefill kernel
};

// One contiguous range, at the same offsets on the host and on the device. Equal counts give equal
// places, so a recorded graph finds them.
struct StepArrays {
  std::uint32_t* token_ids = nullptr;         // [T]
  std::uint32_t* feed_seats = nullptr;        // [T]
  std::uint32_t* positions = nullptr;         // [T]
  std::uint32_t* slot_mapping = nullptr;      // [T]
  std::uint32_t* cu_query_lens = nullptr;     // [S + 1]
  std::uint32_t* context_lens = nullptr;      // [S]
  std::uint32_t* decode_seqs = nullptr;       // [num_decodes]
  ops::cuda::AttentionTile* tiles = nullptr;  // [num_tiles]
  std::uint32_t* last_tokens = nullptr;       // [R] the token whose logits are wanted
  std::uint32_t* seats = nullptr;             // [R]
  ops::SampleParams* params = nullptr;        // [R]

  // Places them from `base` on and answers the bytes; with a null base only that.
  static std::uint64_t place(const StepCounts& counts, std::byte* base, StepArrays& arrays);
};

// What decides the form of a step's arrays.
struct StepForm {
  std::uint32_t graph_size = 0;  // sequences of the graph that will be replayed; 0 for none
  std::uint32_t tile_rows = 0;   // query tokens of an attention tile
  bool only_tiles = false;       // no decode kernel: same bits in any batch
};

// The page-locked side of one step in flight.
class StepSlot {
 public:
  // For steps up to these counts, with tables of block_table_stride blocks.
  StepSlot(const StepCounts& most, std::uint32_t block_table_stride);

  void fill(const StepBatch& batch, const StepForm& form);

  const StepCounts& counts() const { return counts_; }
  const std::byte* staged() const { return staging_.data(); }
  std::uint64_t staged_bytes() const { return staged_bytes_; }
  const std::uint32_t* block_tables() const {
    return reinterpret_cast<const std::uint32_t*>(tables_.data());
  }

  // Of the batch itself, without padding.
  std::uint32_t num_seqs = 0;
  std::uint32_t block_table_stride = 0;
  std::vector<std::uint32_t> row_seqs;  // [real rows] the sequence of each row
  bool any_random = false;
  bool any_filter = false;
  bool want_logits = false;
  float idle_ms = 0;  // of the device before it

  // The answer.
  ops::Sampled* sampled() const { return reinterpret_cast<ops::Sampled*>(answer_.data()); }
  std::vector<float> logits;
  CudaEvent started;
  CudaEvent ended;

 private:
  void count(const StepBatch& batch, const StepForm& form);
  void fill_tokens(const StepBatch& batch, const StepArrays& arrays);
  void fill_seqs(const StepBatch& batch, const StepForm& form, const StepArrays& arrays);
  void fill_rows(const StepBatch& batch, const StepArrays& arrays);

  StepCounts counts_;
  std::uint64_t staged_bytes_ = 0;
  PinnedBuffer staging_;
  PinnedBuffer tables_;
  PinnedBuffer answer_;
};

}  // namespace inferno::engine
