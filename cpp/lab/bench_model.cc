#include "lab/bench_model.h"

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
      cu_query_lens_{0},
      context_lens_(sequences.num_seqs, sequences.context_len),
      sampling_(sequences.num_seqs),
      feed_sampled_(std::make_unique<bool[]>(sequences.num_seqs)),
      sample_(std::make_unique<bool[]>(sequences.num_seqs)) {
  const std::uint32_t stride = sequences.blocks_of_a_seq();
  const std::uint32_t before = sequences.context_len - sequences.query_len;
  for (std::uint32_t seq = 0; seq < sequences.num_seqs; ++seq) {
    for (std::uint32_t i = 0; i < sequences.query_len; ++i) {
      token_ids_.push_back((seq * 7919 + i * 31) % 30000);
      positions_.push_back(before + i);
      slot_mapping_.push_back(seq * stride * kBlockSize + before + i);
    }
    cu_query_lens_.push_back(static_cast<std::uint32_t>(token_ids_.size()));
    seats_.push_back(seq);
  }
  for (std::uint32_t i = 0; i < sequences.num_blocks(); ++i) block_tables_.push_back(i);
  std::fill_n(feed_sampled_.get(), sequences.num_seqs, sequences.fed);
  std::fill_n(sample_.get(), sequences.num_seqs, true);
}

engine::StepBatch StepOfEquals::batch() const {
  return {.token_ids = token_ids_,
          .positions = positions_,
          .slot_mapping = slot_mapping_,
          .cu_query_lens = cu_query_lens_,
          .context_lens = context_lens_,
          .block_tables = block_tables_,
          .block_table_stride = sequences_.blocks_of_a_seq(),
          .seats = seats_,
          .feed_sampled = {feed_sampled_.get(), sequences_.num_seqs},
          .sample = {sample_.get(), sequences_.num_seqs},
          .sampling = sampling_};
}

}  // namespace inferno::lab
