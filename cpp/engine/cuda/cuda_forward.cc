#include "engine/cuda/cuda_forward.h"

#include <algorithm>
#include <utility>

#include "engine/base/error.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

// One range on the host as one on the device, in the stream.
void copy_up(void* to, const void* from, std::uint64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
}

// The graphs of prompts, then longer ones, doubled each time, for which products of many rows
// choose and load their kernels: the choice is made for every length then (linear_cuda.h), and
// longer prompts have no kernels that a shorter one has not met. Then the graphs of decodes.
std::vector<WarmUpStep> plan_warm_up(std::uint32_t longest_prompt,
                                     std::span<const std::uint32_t> prompt_sizes,
                                     std::span<const std::uint32_t> decode_sizes) {
  std::vector<WarmUpStep> steps;
  for (const std::uint32_t size : prompt_sizes) steps.push_back({1, size});
  const std::uint32_t longest = std::min(longest_prompt, 2048U);
  for (std::uint32_t length = 2 * kMaxPromptGraph; length < longest; length *= 2) {
    steps.push_back({1, length});
  }
  steps.push_back({1, longest});
  for (const std::uint32_t size : decode_sizes) steps.push_back({size, 1});
  return steps;
}

// Of a step.
std::uint32_t longest_prompt(const ModelLimits& limits) {
  return std::min(limits.max_step_tokens, limits.max_seq_len);
}

// The least that holds as many; none where all are smaller.
std::optional<std::uint32_t> size_for(std::span<const std::uint32_t> sizes, std::uint32_t count) {
  const auto size = std::lower_bound(sizes.begin(), sizes.end(), count);
  return size == sizes.end() ? std::nullopt : std::optional(*size);
}

}  // namespace

CudaForward::CudaForward(const CudaDevice& device, const ForwardParts& parts)
    : device_(device),
      decoder_(parts.decoder),
      spec_(parts.decoder.spec),
      limits_(parts.limits),
      workspace_(device.pool, spec_, parts.limits),
      sampler_(device.op, workspace_.sampler, parts.limits.max_batch_size,
               parts.limits.max_seq_len),
      linear_(std::make_unique<ops::cuda::LinearCuda>(device.op, workspace_.linear,
                                                      parts.limits.max_step_tokens)),
      form_{parts.limits.block_size,
            ops::cuda::attention_tile_rows(spec_.layers[0].attention.num_heads,
                                           spec_.layers[0].attention.num_kv_heads),
            device.deterministic || device.reference_attention},
      block_table_stride_(parts.limits.max_blocks()),
      decode_sizes_(decode_graph_sizes(parts.limits.max_batch_size)),
      prompt_sizes_(prompt_graph_sizes(longest_prompt(parts.limits))),
      warm_up_steps_(plan_warm_up(longest_prompt(parts.limits), prompt_sizes_, decode_sizes_)),
      answer_(parts.limits.max_batch_size, parts.limits.max_step_tokens) {
  linear_->set_batch_invariant(device.deterministic);
  const StepCounts largest = largest_step(spec_, limits_);
  if (const MlpSpec* mlp = first_experts(spec_)) {
    experts_ = std::make_unique<ops::cuda::ExpertsCuda>(device.op, experts_shape(spec_, *mlp),
                                                        largest.num_tokens, workspace_.experts);
    experts_->set_batch_invariant(device.deterministic);
  }
  for (auto& slot : slots_) {
    slot = std::make_unique<StepSlot>(largest, block_table_stride_, spec_.vocab_size);
  }
  const cudaStream_t stream = device_.op.stream;
  check(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), stream), "cudaMemsetAsync");
  for (std::size_t i = 0; i < spec_.ropes.size(); ++i) {
    const std::vector<float>& inv_freq = spec_.ropes[i].inv_freq;
    copy_up(workspace_.inv_freq[i], inv_freq.data(), inv_freq.size() * sizeof(float), stream);
  }
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

// The memory may be given to another model at once.
CudaForward::~CudaForward() {
  const auto alone = no_waiting_for_device();
  cudaStreamSynchronize(device_.op.stream);
  graphs_.clear();
  experts_.reset();
  linear_.reset();
}

// What a batch that only decodes, or one prompt, each sequence sampling, is padded to.
std::optional<StepCounts> CudaForward::graph_of(const StepCounts& counts) const {
  if (counts.num_rows != counts.num_seqs) return std::nullopt;
  if (counts.num_tokens == counts.num_seqs) {
    const auto size = size_for(decode_sizes_, counts.num_seqs);
    if (!size) return std::nullopt;
    return StepCounts{*size, *size, *size, form_.only_tiles ? 0 : *size,
                      form_.only_tiles ? *size : 0};
  }
  if (counts.num_seqs > 1) return std::nullopt;
  const auto size = size_for(prompt_sizes_, counts.num_tokens);
  // No tile without a token.
  if (!size || form_.num_tiles(*size) != counts.num_tiles) return std::nullopt;
  return StepCounts{*size, 1, 1, 0, counts.num_tiles};
}

void CudaForward::bind(const ops::SamplerSpec& spec, const ops::SeatHistory& history) {
  sampler_.bind(spec, history);
}

void CudaForward::begin(const StepBatch& batch) {
  if (num_begun_ - num_taken_ >= slots_.size()) {
    throw Error(ErrorCode::kInvalidBatch, "two steps are under way already");
  }
  // A step that failed half-way may still read what is about to be filled.
  if (is_open_) check(cudaStreamSynchronize(device_.op.stream), "cudaStreamSynchronize");
  is_open_ = true;
  slot_ = slots_[num_begun_ % slots_.size()].get();
  const StepCounts counts = count(batch, form_);
  graph_ = graph_of(counts);
  slot_->fill(batch, form_, graph_.value_or(counts), sampler_.seats());
  StepArrays::place(slot_->counts(), workspace_.step, arrays_);
  slot_->step = device_.clock.begin(device_.op.stream);
  upload(*slot_);
}

void CudaForward::upload(const StepSlot& slot) {
  const cudaStream_t stream = device_.op.stream;
  copy_up(workspace_.step, slot.staged(), slot.staged_bytes(), stream);
  sampler_.upload(slot);
  const std::size_t width = slot.block_table_stride * sizeof(std::uint32_t);
  if (width == 0 || slot.num_seqs == 0) return;
  check(cudaMemcpy2DAsync(workspace_.block_tables, block_table_stride_ * sizeof(std::uint32_t),
                          slot.block_tables(), width, width, slot.num_seqs, cudaMemcpyHostToDevice,
                          stream),
        "cudaMemcpy2DAsync");
}

void CudaForward::run(const std::function<void()>& pass) {
  if (!graph_) {
    const auto alone = no_waiting_for_device();
    return pass();
  }
  std::unique_ptr<CudaGraph>& graph = graphs_[*graph_];
  if (graph != nullptr) return graph->launch(device_.op.stream);
  const auto alone = no_waiting_for_device();
  // Once for real: whatever is set up at a first launch does not belong into the graph.
  pass();
  auto recorded = std::make_unique<CudaGraph>();
  recorded->record(device_.op.stream, pass);
  graph = std::move(recorded);
}

void CudaForward::sample() {
  const auto alone = no_waiting_for_device();
  sampler_.sample(*slot_, arrays_, workspace_.logits);
  slot_->logits.resize(slot_->want_logits ? slot_->row_seqs.size() * spec_.vocab_size : 0);
  if (slot_->logits.empty()) return;
  check(
      cudaMemcpyAsync(slot_->logits.data(), workspace_.logits, slot_->logits.size() * sizeof(float),
                      cudaMemcpyDeviceToHost, device_.op.stream),
      "cudaMemcpyAsync");
}

void CudaForward::score() {
  const std::uint32_t count = slot_->num_scored();
  if (count == 0) return;
  const auto alone = no_waiting_for_device();
  ScoredArrays scored;
  ScoredArrays::place(count, workspace_.sampler.scored, scored);
  for (std::uint32_t first = 0; first < count; first += limits_.max_batch_size) {
    const std::uint32_t rows = std::min(limits_.max_batch_size, count - first);
    project_rows(scored.tokens + first, rows);
    sampler_.score(*slot_, first, rows, workspace_.logits);
  }
}

void CudaForward::end() {
  device_.clock.end(slot_->step, device_.op.stream);
  ++num_begun_;
  is_open_ = false;
}

bool CudaForward::has_ended() {
  return num_taken_ < num_begun_ &&
         device_.clock.has_ended(slots_[num_taken_ % slots_.size()]->step);
}

StepOutput CudaForward::take() {
  StepSlot& slot = *slots_[num_taken_++ % slots_.size()];
  StepClock& clock = device_.clock;
  clock.wait(slot.step);
  slot.put_answer(answer_);
  StepOutput output = answer_.finish();
  output.logits = slot.logits;
  output.device_ms = clock.device_ms(slot.step);
  output.idle_ms = clock.idle_ms(slot.step);
  return output;
}

}  // namespace inferno::engine
