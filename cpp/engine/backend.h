// What differs between kinds of device: where memory is, how weights get there, and the parts of
// the forward pass. Everything above (model.cc, weights.cc, kv_cache.cc) is written once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "engine/batch.h"
#include "engine/memory/memory_pool.h"
#include "engine/spec/spec.h"
#include "engine/weights/random_weights.h"
#include "ops/linear/packed_weights.h"
#include "ops/sample/sampler.h"

namespace inferno::engine {

struct Decoder;
struct Layer;

// What a kind of device takes for what; known without having one.
class Sizes {
 public:
  virtual ~Sizes() = default;
  // A matrix in the layout that the backend's products read, padding included.
  virtual std::uint64_t matrix_bytes(const ops::WeightShape& matrix) const = 0;
  virtual std::uint64_t workspace_bytes(const DecoderSpec& spec,
                                        const ModelLimits& limits) const = 0;
  // Whether a matrix can be read in such codes; else it is to be held in elements.
  virtual bool reads(MatrixRole role, const WeightFormat& format) const = 0;
  // Throws other for a shape that the backend does not run, naming the field.
  virtual void check(const DecoderSpec& spec, const ModelLimits& limits) const = 0;
};

// A step of equal sequences.
struct WarmUpStep {
  std::uint32_t num_seqs = 0;
  std::uint32_t query_len = 0;
};

// One model's forward pass on one device: the parts of a decoder in the order of the paper, between
// arrays that it keeps. T tokens of S sequences; R of these are sampled.
class Forward {
 public:
  virtual ~Forward() = default;

  // Gives a seat the sampler of a sequence, for the steps that are begun from here on. Both are
  // checked; their views are not kept.
  virtual void bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) = 0;

  // Takes a checked batch; its views are not kept. At most max_in_flight() steps that were begun
  // and not taken.
  virtual void begin(const StepBatch& batch) = 0;
  // Makes the parts from embed to project_logits happen: calls `pass`, or replays what an earlier
  // call with a batch of the same form recorded.
  virtual void run(const std::function<void()>& pass) = 0;

  // x [T, hidden_size] = embedding_scale * the tokens' rows of the embedding; h [T, hidden_size] =
  // the first layer's norm of x
  virtual void embed() = 0;
  // qkv [T, q_size + 2 kv_size] = qkv_proj(h); with an output gate also its product, of the same h
  virtual void project_qkv(const Layer& layer) = 0;
  // attended [T, q_size] = attention(rope(q), rope(k), v), K and V written to the layer's blocks;
  // under an output gate, times its sigmoid
  virtual void attend(const Layer& layer) = 0;
  // x += scale * after(o_proj(attended)); h = next(x)
  virtual void add_attended(const Layer& layer) = 0;
  // gated [T, dense_size] = activation(gate_proj(h)) * up_proj(h); for a shared expert that has a
  // gate, times the sigmoid of this, too
  virtual void gate(const Layer& layer) = 0;
  // x += scale * after(down_proj(gated)); h = next(x). Of a shared expert: h stays, and the norms
  // are left to add_experts, of the sum.
  virtual void add_gated(const Layer& layer) = 0;
  // x += scale * after(the shared expert's output + the chosen experts' outputs, weighted);
  // h = next(x)
  virtual void add_experts(const Layer& layer) = 0;
  // logits [R, vocab_size] = head(norm(x)) of the last token of each sequence that samples
  virtual void project_logits() = 0;
  // Draws a token for each row of logits, also into the sequence's seat.
  virtual void sample() = 0;
  // Log probabilities of the tokens that the batch wants scored, from rows of logits of their own.
  virtual void score() = 0;
  // The step is wholly under way.
  virtual void end() = 0;

  // Whether take would not wait. Steps end in the order in which they began.
  virtual bool has_ended() = 0;
  // The oldest step's result; good until the next call.
  virtual StepOutput take() = 0;

  // Steps to be run once before the first request, so that none pays for page faults, the loading
  // of a kernel or the recording of a graph.
  virtual std::span<const WarmUpStep> warm_up_steps() const = 0;
};

// Rows of a matrix on the device.
struct MatrixRows {
  ops::WeightShape matrix{};  // the whole
  std::byte* data = nullptr;  // of the whole
  std::uint32_t first_row = 0;
  std::uint32_t num_rows = 0;
};

// What a forward pass runs, and within what; both outlive it.
struct ForwardParts {
  const Decoder& decoder;
  const ModelLimits& limits;
};

// A device.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const Sizes& sizes() const = 0;
  virtual MemoryPool& pool() = 0;
  virtual const MemoryPool& pool() const = 0;

  // Weights may be on their way when these return; `finish_writes` waits.
  virtual void write_rows(const MatrixRows& target, const ops::RowSource& source) = 0;
  virtual void randomise_rows(const MatrixRows& target, const NormalTable& normal,
                              std::uint64_t key) = 0;
  virtual void write_vector(float* target, std::span<const float> values) = 0;
  virtual void finish_writes() {}

  virtual std::unique_ptr<Forward> make_forward(const ForwardParts& parts) = 0;
  // Steps that may be submitted before the first is taken.
  virtual std::uint32_t max_in_flight() const = 0;
  // Of the CPU backend; Portable elsewhere.
  virtual ops::Isa isa() const { return ops::Isa::Portable; }
};

// Throws out_of_memory if the pool cannot be reserved, other for a device that is not there or that
// this build has no code for.
std::unique_ptr<Backend> make_backend(const DeviceOptions& options);
std::unique_ptr<Sizes> make_sizes(const DeviceOptions& options);

}  // namespace inferno::engine
