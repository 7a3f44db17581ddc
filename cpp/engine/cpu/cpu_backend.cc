#include "engine/cpu/cpu_backend.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/cpu/cpu_forward.h"
#include "engine/cpu/cpu_workspace.h"

namespace inferno::engine {
namespace {

constexpr std::uint32_t kMaxThreads = 1024;

std::uint32_t checked_threads(std::uint32_t num_threads) {
  if (num_threads >= 1 && num_threads <= kMaxThreads) return num_threads;
  throw Error(ErrorCode::kOther, "num_threads: expected 1 to " + std::to_string(kMaxThreads) +
                                     ", got " + std::to_string(num_threads));
}

ops::Isa checked_isa(ops::Isa isa) {
  if (ops::isa_available(isa)) return isa;
  throw Error(ErrorCode::kOther,
              std::string("isa: this machine has not got ") + ops::isa_name(isa));
}

}  // namespace

CpuSizes::CpuSizes(std::uint32_t num_threads) : num_threads_(checked_threads(num_threads)) {}

std::uint64_t CpuSizes::matrix_bytes(const ops::WeightShape& matrix) const {
  return ops::packed_bytes(matrix);
}

std::uint64_t CpuSizes::workspace_bytes(const DecoderSpec& spec, const ModelLimits& limits) const {
  return CpuWorkspace::bytes_needed(spec, limits, num_threads_);
}

CpuBackend::CpuBackend(const DeviceOptions& options)
    : isa_(checked_isa(options.isa)),
      attention_isa_(options.attention == AttentionBackend::Reference ? ops::Isa::Portable : isa_),
      sizes_(options.num_threads),
      pool_(options.pool_bytes),
      threads_(options.num_threads) {}

void CpuBackend::write_rows(const MatrixRows& target, const ops::RowSource& source) {
  ops::pack_rows(op_context(), target.matrix, target.data, target.first_row, source);
}

void CpuBackend::randomise_rows(const MatrixRows& target, const NormalTable& normal,
                                std::uint64_t key) {
  constexpr std::uint32_t kRowsAtOnce = 1024;
  const ops::WeightShape& matrix = target.matrix;
  const std::uint64_t row_bytes = matrix.num_columns * ops::dtype_bytes(normal.dtype());
  const std::uint64_t stride = random_row_stride(matrix.num_columns);
  std::vector<std::byte> rows(std::min(kRowsAtOnce, target.num_rows) * row_bytes);
  for (std::uint32_t first = 0; first < target.num_rows; first += kRowsAtOnce) {
    const std::uint32_t count = std::min(kRowsAtOnce, target.num_rows - first);
    threads_.parallel_for(count, [&](std::uint32_t row, std::uint32_t) {
      normal.fill(key, (first + row) * stride, std::span(rows).subspan(row * row_bytes, row_bytes));
    });
    ops::pack_rows(op_context(), matrix, target.data, target.first_row + first,
                   {rows.data(), normal.dtype(), count});
  }
}

void CpuBackend::write_vector(float* target, std::span<const float> values) {
  std::copy(values.begin(), values.end(), target);
}

std::unique_ptr<Forward> CpuBackend::make_forward(const ForwardParts& parts) {
  return std::make_unique<CpuForward>(CpuDevice{pool_, threads_, isa_, attention_isa_}, parts);
}

}  // namespace inferno::engine
