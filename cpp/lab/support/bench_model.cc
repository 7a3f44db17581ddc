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

engine::DeviceOptions options_for(const engine::LlamaShape& shape,
                                  const engine::ModelLimits& limits, bool deterministic) {
  engine::DeviceOptions options{.num_threads = 8, .backend = engine::BackendKind::Cuda};
  options.deterministic = deterministic;
  const engine::MemoryNeed need = required_bytes(options, spec_of(shape), limits);
  options.pool_bytes = need.weight_bytes + need.workspace_bytes + limits.kv_bytes + (1 << 20);
  return options;
}

StepOfEquals::StepOfEquals(std::span<const EqualSequences> kinds) {
  for (const EqualSequences& kind : kinds) {
    num_seqs_ += kind.num_seqs;
    block_table_stride_ = std::max(block_table_stride_, kind.blocks_of_a_seq());
  }
  feed_sampled_ = std::make_unique<bool[]>(num_seqs_);
  sample_ = std::make_unique<bool[]>(num_seqs_);
  score_ = std::make_unique<bool[]>(num_seqs_);
  no_tokens_.assign(num_seqs_, ops::kNoToken);
  no_masks_.assign(num_seqs_, ops::kNoMaskRow);
  std::fill_n(sample_.get(), num_seqs_, true);
  for (const EqualSequences& kind : kinds) add(kind);
}

void StepOfEquals::add(const EqualSequences& sequences) {
  for (std::uint32_t i = 0; i < sequences.num_seqs; ++i) {
    const auto seq = static_cast<std::uint32_t>(seats_.size());
    for (std::uint32_t t = 0; t < sequences.query_len; ++t) {
      token_ids_.push_back((seq * 7919 + t * 31) % 30000);
    }
    query_lens_.push_back(sequences.query_len);
    context_lens_.push_back(sequences.context_len);
    feed_sampled_[seq] = sequences.fed;
    seats_.push_back(seq);
    const std::size_t row = block_tables_.size();
    block_tables_.resize(row + block_table_stride_, 0);
    for (std::uint32_t block = 0; block < sequences.blocks_of_a_seq(); ++block) {
      block_tables_[row + block] = num_blocks_++;
    }
  }
}

engine::StepBatch StepOfEquals::batch() const {
  return {.token_ids = token_ids_,
          .query_lens = query_lens_,
          .context_lens = context_lens_,
          .block_tables = block_tables_,
          .block_table_stride = block_table_stride_,
          .seats = seats_,
          .feed_sampled = {feed_sampled_.get(), num_seqs_},
          .sample = {sample_.get(), num_seqs_},
          .score = {score_.get(), num_seqs_},
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
