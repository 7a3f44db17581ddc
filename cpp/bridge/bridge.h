// The engine as Rust sees it. Every call may throw; the text starts with out_of_memory,
// invalid_batch, sticky or other.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/error.h"
#include "engine/spec/spec.h"
#include "ops/base/dtype.h"
#include "rust/cxx.h"

namespace rust::behavior {

// cxx's hook: what a call threw, of whatever type, becomes the text of Rust's error.
template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept {
  try {
    func();
  } catch (...) {
    fail(inferno::engine::describe_current_exception());
  }
}

}  // namespace rust::behavior

namespace inferno {

enum class Backend : std::uint8_t;
enum class Factors : std::uint8_t;
enum class Isa : std::uint8_t;
struct DeviceOptions;
struct WeightFormat;
struct MemoryNeed;
struct DecoderSpec;
struct TensorRows;
struct TensorSlot;
struct ModelLimits;
struct ModelPlan;
struct MemoryStats;
struct SamplerSpec;
struct StepBatch;
struct StepOutput;

// One device: its memory pool and models. Made, used and dropped on one thread.
class Context {
 public:
  explicit Context(const DeviceOptions& options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  ModelPlan add_model(const DecoderSpec& spec, const ModelLimits& limits);
  void set_tensor(std::uint32_t model, const TensorSlot& slot, const TensorRows& tensor);
  void fill_random(std::uint32_t model, std::uint64_t seed);
  std::uint32_t finish_model_part(std::uint32_t model);
  void finish_model(std::uint32_t model);
  void remove_model(std::uint32_t model);
  void bind_seat(std::uint32_t model, std::uint32_t seat, const SamplerSpec& spec,
                 std::uint32_t prompt_len, rust::Slice<const std::uint32_t> token_ids);
  void submit_step(const StepBatch& batch);
  bool step_has_ended();
  void take_step(StepOutput& output);
  void run_step(const StepBatch& batch, StepOutput& output);
  std::uint32_t max_in_flight() const noexcept;
  MemoryStats memory_stats() const;
  Isa isa() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::unique_ptr<Context> new_context(const DeviceOptions& options);
MemoryNeed required_bytes(const DeviceOptions& options, const DecoderSpec& spec,
                          const ModelLimits& limits);
bool reads_codes(const DeviceOptions& options, engine::MatrixRole role, const WeightFormat& format);
bool isa_available(Isa isa) noexcept;
double measure_read_bandwidth(std::uint64_t bytes, std::uint32_t num_threads, std::uint32_t rounds);
double measure_product_rate(Isa isa, Factors factors, std::uint32_t num_threads);

}  // namespace inferno
