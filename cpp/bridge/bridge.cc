#include "bridge/bridge.h"

#include <stdexcept>

#include "inferno-node/src/bridge.rs.h"

namespace inferno {

struct Context::Impl {};
Context::Context(const DeviceOptions&) : impl_(std::make_unique<Impl>()) {}
Context::~Context() = default;
ModelPlan Context::add_model(const ModelShape&, const ModelLimits&) {
  throw std::runtime_error("other: scaffold");
}
void Context::set_tensor(std::uint32_t, rust::Str, Dtype, rust::Slice<const std::uint64_t>,
                         rust::Slice<const std::uint8_t>) {
  throw std::runtime_error("other: scaffold");
}
void Context::fill_random(std::uint32_t, std::uint64_t) {
  throw std::runtime_error("other: scaffold");
}
void Context::finish_model(std::uint32_t) { throw std::runtime_error("other: scaffold"); }
void Context::remove_model(std::uint32_t) { throw std::runtime_error("other: scaffold"); }
void Context::run_step(const StepBatch&, StepOutput&) {
  throw std::runtime_error("other: scaffold");
}
MemoryStats Context::memory_stats() const { throw std::runtime_error("other: scaffold"); }
Isa Context::isa() const noexcept { return Isa::Portable; }
std::unique_ptr<Context> new_cpu_context(const DeviceOptions& options) {
  return std::make_unique<Context>(options);
}
bool isa_available(Isa) noexcept { return false; }
double measure_read_bandwidth(std::uint64_t, std::uint32_t, std::uint32_t) {
  throw std::runtime_error("other: scaffold");
}

}  // namespace inferno
