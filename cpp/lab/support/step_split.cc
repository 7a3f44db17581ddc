#include "lab/support/step_split.h"

#include <vector>

#include "ops/embed/embed_cuda.h"
#include "ops/glu/glu_cuda.h"
#include "ops/linear/cuda/linear_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"
#include "ops/rope/rope_kv_cuda.h"
#include "ops/sample/sample_cuda.h"

namespace inferno::lab {
namespace {

// Of a launch that a step has once: alone in a graph, the graph's own start would be timed.
constexpr std::uint32_t kChain = 32;

// Which kernels LinearCuda takes for so many rows.
bool few_rows(std::uint32_t num_tokens, bool deterministic) {
  return deterministic || num_tokens <= ops::cuda::kMaxFewRows;
}

}  // namespace

StepSplit::StepSplit(const engine::LlamaShape& shape, const engine::ModelLimits& limits,
                     const engine::DeviceOptions& options)
    : shape_(shape),
      spec_(spec_of(shape)),
      limits_(limits),
      deterministic_(options.deterministic),
      backend_(options),
      weights_(backend_, spec_),
      kv_(backend_.pool(), spec_, limits_),
      decoder_(spec_, weights_, kv_),
      forward_({gpu_.op(), backend_.pool(), clock_, deterministic_}, {decoder_, limits_}) {
  weights_.fill_random(1);
  weights_.check_complete();
  // Attention reads positions that no step has written: what memory held before may be no numbers.
  clear_device(kv_.layer(0).k, kv_.bytes());
}

StepParts StepSplit::measure(const StepOfEquals& step) {
  // A whole step first: each part then finds what it reads.
  forward_.begin(step.batch());
  forward_.embed();
  layers(true);
  forward_.sample();
  forward_.end();
  forward_.take();
  // Parts of this one are repeated; it is never ended.
  forward_.begin(step.batch());
  const std::uint32_t num_tokens = step.batch().num_tokens();
  StepParts parts;
  parts.embedding = ms([&] {
                      for (std::uint32_t i = 0; i < kChain; ++i) forward_.embed();
                    }) /
                    kChain;
  parts.rope_kv = forward_.attention_turns(decoder_.layers[0]) ? 0 : rope_kv_ms(step);
  parts.norms = norms_ms(num_tokens);
  parts.activation = activation_ms(num_tokens);
  parts.sampler = sampler_ms(step.batch().num_seqs());
  const double attending = ms([&] {
    for (const engine::Layer& layer : decoder_.layers) forward_.attend(layer);
  });
  parts.attention = attending - parts.rope_kv;
  parts.products = ms([&] { layers(false); }) - parts.norms - parts.activation;
  return parts;
}

void StepSplit::layers(bool attending) {
  for (const engine::Layer& layer : decoder_.layers) {
    forward_.project_qkv(layer);
    if (attending) forward_.attend(layer);
    forward_.add_attended(layer);
    forward_.gate(layer);
    forward_.add_gated(layer);
  }
  forward_.project_logits();
}

double StepSplit::rope_kv_ms(const StepOfEquals& step) const {
  const DeviceArray<std::uint32_t> slots(step.slot_mapping());
  const auto num_tokens = static_cast<std::uint32_t>(slots.size());
  const DeviceArray<Bf16> qkv =
      uniform_array(gpu_, slots.size() * (shape_.q_size() + 2 * shape_.kv_size()));
  const DeviceArray<float> cos_sin(slots.size() * shape_.head_dim);
  return ms([&] {
    for (std::uint32_t i = 0; i < shape_.num_layers; ++i) {
      const ops::KvLayer& kv = kv_.layer(i);
      ops::cuda::rope_kv_cuda(
          gpu_.op(),
          {kv.k, kv.v, kv.dtype, kv.num_blocks, kv.block_size, kv.num_kv_heads, kv.head_dim},
          {.qkv = qkv.data(),
           .cos_sin = cos_sin.data(),
           .slot_mapping = slots.data(),
           .num_tokens = num_tokens,
           .num_heads = shape_.num_heads,
           .rotary_dim = shape_.head_dim});
    }
  });
}

// Where products of few rows leave a norm to the next product, only the last is a kernel.
double StepSplit::norms_ms(std::uint32_t num_tokens) const {
  const bool fused = few_rows(num_tokens, deterministic_) && gpu_.op().dependent_launch;
  const std::uint32_t num_norms = fused ? 1 : 2 * shape_.num_layers;
  const std::size_t size = std::size_t{num_tokens} * shape_.hidden_size;
  const DeviceArray<float> x(size);
  const DeviceArray<float> weight(shape_.hidden_size);
  const DeviceArray<Bf16> out(size);
  const double all = ms([&] {
    for (std::uint32_t i = 0; i < kChain; ++i) {
      ops::cuda::rms_norm_cuda(gpu_.op(), {.x = x.data(),
                                           .weight = weight.data(),
                                           .eps = shape_.rms_norm_eps,
                                           .num_tokens = num_tokens,
                                           .hidden_size = shape_.hidden_size,
                                           .dtype = shape_.dtype,
                                           .out = out.data()});
    }
  });
  return all / kChain * num_norms;
}

// A kernel of its own after products of many rows.
double StepSplit::activation_ms(std::uint32_t num_tokens) const {
  if (few_rows(num_tokens, deterministic_)) return 0;
  const std::size_t size = std::size_t{num_tokens} * shape_.intermediate_size;
  const DeviceArray<Bf16> gate_up = uniform_array(gpu_, 2 * size);
  const DeviceArray<Bf16> gated(size);
  return ms([&] {
    for (std::uint32_t i = 0; i < shape_.num_layers; ++i) {
      ops::cuda::glu_cuda(gpu_.op(), {.gate_up = gate_up.data(),
                                      .num_tokens = num_tokens,
                                      .intermediate_size = shape_.intermediate_size,
                                      .dtype = shape_.dtype,
                                      .out = gated.data()});
    }
  });
}

double StepSplit::sampler_ms(std::uint32_t num_rows) const {
  const DeviceArray<float> logits(std::size_t{num_rows} * shape_.vocab_size);
  fill_normal(gpu_, logits);
  const DeviceArray<ops::SampleParams> params(std::vector(num_rows, ops::SampleParams{}));
  const DeviceArray<std::uint32_t> seats(std::vector<std::uint32_t>(num_rows, ops::cuda::kNoSeat));
  const DeviceArray<std::byte> workspace(
      ops::cuda::sample_cuda_workspace_bytes(num_rows, shape_.vocab_size));
  const DeviceArray<ops::Sampled> sampled(num_rows);
  const DeviceArray<std::uint32_t> sampled_ids(num_rows);
  const double all = ms([&] {
    for (std::uint32_t i = 0; i < kChain; ++i) {
      ops::cuda::sample_cuda(gpu_.op(), {.logits = logits.data(),
                                         .params = params.data(),
                                         .seats = seats.data(),
                                         .num_rows = num_rows,
                                         .vocab_size = shape_.vocab_size,
                                         .workspace = workspace.data(),
                                         .sampled = sampled.data(),
                                         .sampled_ids = sampled_ids.data()});
    }
  });
  return all / kChain;
}

}  // namespace inferno::lab
