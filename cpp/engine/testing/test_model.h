// What the engine's tests share: small shapes, a device, and steps built from sequences.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "engine/context.h"
#include "engine/spec/llama_spec.h"

namespace inferno::engine::test {

// Calls of operator new in this process so far (test_allocations.cc).
std::uint64_t num_news();

// Odd sizes on purpose: nothing is a multiple of a vector's length.
inline LlamaShape small_shape(ops::Dtype dtype) {
  LlamaShape shape;
  shape.vocab_size = 211;
  shape.hidden_size = 72;
  shape.intermediate_size = 108;
  shape.num_layers = 3;
  shape.num_heads = 6;
  shape.num_kv_heads = 2;
  shape.head_dim = 12;
  shape.rms_norm_eps = 1e-5F;
  shape.rope_theta = 10000;
  shape.dtype = dtype;
  return shape;
}

inline DecoderSpec small_spec(ops::Dtype dtype) { return spec_of(small_shape(dtype)); }

inline ModelLimits small_limits() {
  return {.block_size = 4,
          .kv_bytes = 1 << 20,
          .max_batch_size = 6,
          .max_step_tokens = 64,
          .max_seq_len = 64,
          .end_token_ids = {7}};
}

inline DeviceOptions small_device(ops::Isa isa = ops::Isa::Portable,
                                  std::uint32_t num_threads = 2) {
  return {num_threads, isa, 8 << 20};
}

// One sequence's part of a step.
struct Query {
  std::vector<std::uint32_t> token_ids;  // the query tokens
  std::uint32_t first_position = 0;
  std::vector<std::uint32_t> blocks;
  std::uint32_t seat = 0;
  bool sample = true;
  bool feed_sampled = false;
  bool score = false;
  std::uint32_t next_token_id = ops::kNoToken;
  std::uint32_t mask_row = ops::kNoMaskRow;
};

// Owns the arrays of a step.
class Step {
 public:
  explicit Step(const std::vector<Query>& queries, std::vector<std::uint32_t> masks = {})
      : masks_(std::move(masks)) {
    for (const Query& query : queries) {
      stride_ = std::max(stride_, static_cast<std::uint32_t>(query.blocks.size()));
    }
    flags_ = std::make_unique<bool[]>(3 * queries.size());
    num_seqs_ = queries.size();
    for (std::size_t seq = 0; seq < queries.size(); ++seq) add(queries[seq], seq);
  }

  StepBatch batch(bool want_logits = true) const {
    return {.token_ids = token_ids_,
            .query_lens = query_lens_,
            .context_lens = context_lens_,
            .block_tables = block_tables_,
            .block_table_stride = stride_,
            .seats = seats_,
            .feed_sampled = {flags_.get(), num_seqs_},
            .sample = {flags_.get() + num_seqs_, num_seqs_},
            .score = {flags_.get() + 2 * num_seqs_, num_seqs_},
            .next_token_ids = next_token_ids_,
            .masks = masks_,
            .mask_rows = mask_rows_,
            .want_logits = want_logits};
  }

 private:
  void add(const Query& query, std::size_t seq) {
    token_ids_.insert(token_ids_.end(), query.token_ids.begin(), query.token_ids.end());
    const auto query_len = static_cast<std::uint32_t>(query.token_ids.size());
    query_lens_.push_back(query_len);
    context_lens_.push_back(query.first_position + query_len);
    std::vector<std::uint32_t> row = query.blocks;
    row.resize(stride_);
    block_tables_.insert(block_tables_.end(), row.begin(), row.end());
    seats_.push_back(query.seat);
    flags_[seq] = query.feed_sampled;
    flags_[num_seqs_ + seq] = query.sample;
    flags_[2 * num_seqs_ + seq] = query.score;
    next_token_ids_.push_back(query.next_token_id);
    mask_rows_.push_back(query.mask_row);
  }

  std::vector<std::uint32_t> token_ids_, query_lens_, context_lens_, block_tables_, seats_,
      next_token_ids_, masks_, mask_rows_;
  std::uint32_t stride_ = 0;
  std::size_t num_seqs_ = 0;
  std::unique_ptr<bool[]> flags_;
};

// Seats 0 to count - 1 get a sampler, of an empty sequence.
inline void bind_seats(Context& context, std::uint32_t model, std::uint32_t count,
                       const ops::SamplerSpec& spec = {}) {
  for (std::uint32_t seat = 0; seat < count; ++seat) context.bind_seat(model, spec, {.seat = seat});
}

inline std::vector<std::uint32_t> blocks_from(std::uint32_t first, std::uint32_t count) {
  std::vector<std::uint32_t> blocks(count);
  for (std::uint32_t i = 0; i < count; ++i) blocks[i] = first + i;
  return blocks;
}

// Ids of small_shape's vocabulary.
inline std::vector<std::uint32_t> prompt(std::size_t length, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint32_t> ids(length);
  for (auto& id : ids) id = random() % 211;
  return ids;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

inline std::vector<ops::Isa> available_isas() {
  std::vector<ops::Isa> isas;
  for (const ops::Isa isa : ops::kIsas) {
    if (ops::isa_available(isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace inferno::engine::test
