// The models that steps are timed of, and steps of equal sequences or of two kinds of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/batch.h"
#include "engine/context.h"
#include "engine/spec/llama_spec.h"

namespace inferno::lab {

inline constexpr std::uint32_t kBlockSize = 16;

// Of 1b, 8b or 7b: Llama 3.2, Llama 3.1 and Llama 2.
engine::LlamaShape shape_of(std::string_view name);

// A card with room for the model and no more.
engine::DeviceOptions options_for(const engine::LlamaShape& shape,
                                  const engine::ModelLimits& limits, bool deterministic = false);

// `context_len` positions of each sequence, the last `query_len` of them computed in the step.
struct EqualSequences {
  std::uint32_t num_seqs;
  std::uint32_t query_len;
  std::uint32_t context_len;
  bool fed = false;  // their seats' last tokens

  std::uint32_t num_blocks() const { return num_seqs * blocks_of_a_seq(); }
  std::uint32_t blocks_of_a_seq() const { return (context_len + kBlockSize - 1) / kBlockSize; }
};

// The arrays of a step of such sequences, one kind after the other; every sequence samples.
class StepOfEquals {
 public:
  explicit StepOfEquals(const EqualSequences& sequences) : StepOfEquals({&sequences, 1}) {}
  explicit StepOfEquals(std::span<const EqualSequences> kinds);
  engine::StepBatch batch() const;
  std::vector<std::uint32_t> slot_mapping() const;

 private:
  void add(const EqualSequences& sequences);

  std::uint32_t num_seqs_ = 0;
  std::uint32_t block_table_stride_ = 0;
  std::uint32_t num_blocks_ = 0;
  std::vector<std::uint32_t> token_ids_, query_lens_, context_lens_, block_tables_, seats_,
      no_tokens_, no_masks_;
  std::unique_ptr<bool[]> feed_sampled_, sample_, score_;
};

}  // namespace inferno::lab
