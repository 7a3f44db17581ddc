#include "lab/support/bench_model.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace inferno::lab {

engine::LlamaShape shape_of(std::string_view name) {
  engine::LlamaShape shape;
  shape.rms_norm_eps = 1e-5F;
  shape.rope_theta = 500000;
  shape.num_heads = 32;
  if (name == "1b") {
    shape.vocab_size = 128256, shape.hidden_size = 2048, shape.intermediate_size = 8192;
    shape.num_layers = 16, shape.num_kv_heads = 8, shape.head_dim = 64;
    shape.tie_word_embeddings = true;
  } else if (name == "8b") {
    shape.vocab_size = 128256, shape.hidden_size = 4096, shape.intermediate_size = 14336;
    shape.num_layers = 32, shape.num_kv_heads = 8, shape.head_dim = 128;
  } else if (name == "7b") {
    shape.vocab_size = 32000, shape.hidden_size = 4096, shape.intermediate_size = 11008;
    shape.num_layers = 32, shape.num_kv_heads = 32, shape.head_dim = 128;
  } else {
    throw std::invalid_argument("expected a model 1b, 8b or 7b, got " + std::string(name));
  }
  return shape;
}

StepOfEquals::StepOfEquals(const EqualSequences& sequences)
    : sequences_(sequences),
      query_lens_(sequences.num_seqs, sequences.query_len),
      context_lens_(sequences.num_seqs, sequences.context_len),
      no_tokens_(sequences.num_seqs, ops::kNoToken),
      no_masks_(sequences.num_seqs, ops::kNoMaskRow),
      feed_sampled_(std::make_unique<bool[]>(sequences.num_seqs)),
      sample_(std::make_unique<bool[]>(sequences.num_seqs)),
      score_(std::make_unique<bool[]>(sequences.num_seqs)) {
  for (std::uint32_t seq = 0; seq < sequences.num_seqs; ++seq) {
    for (std::uint32_t i = 0; i < sequences.query_len; ++i) {
      token_ids_.push_back((seq * 7919 + i * 31) % 30000);
    }
    seats_.push_back(seq);
  }
  for (std::uint32_t i = 0; i < sequences.num_blocks(); ++i) block_tables_.push_back(i);
  std::fill_n(feed_sampled_.get(), sequences.num_seqs, sequences.fed);
  std::fill_n(sample_.get(), sequences.num_seqs, true);
}

engine::StepBatch StepOfEquals::batch() const {
  return {.token_ids = token_ids_,
          .query_lens = query_lens_,
          .context_lens = context_lens_,
          .block_tables = block_tables_,
          .block_table_stride = sequences_.blocks_of_a_seq(),
          .seats = seats_,
          .feed_sampled = {feed_sampled_.get(), sequences_.num_seqs},
          .sample = {sample_.get(), sequences_.num_seqs},
          .score = {score_.get(), sequences_.num_seqs},
          .next_token_ids = no_tokens_,
          .mask_rows = no_masks_};
}

std::vector<std::uint32_t> StepOfEquals::slot_mapping() const {
  std::vector<std::uint32_t> positions(token_ids_.size());
  std::vector<std::uint32_t> slots(token_ids_.size());
  std::vector<std::uint32_t> cu_query_lens(seats_.size() + 1);
  engine::derive_arrays(batch(), kBlockSize,
                        {positions.data(), slots.data(), cu_query_lens.data()});
  return slots;
}

}  // namespace inferno::lab
