#include "engine/cuda/cuda_backend.h"

#include <algorithm>
#include <string>

#include "engine/base/error.h"
#include "engine/cuda/cuda_forward.h"
#include "engine/cuda/cuda_workspace.h"
#include "ops/attention/cuda/attention_cuda.h"
#include "ops/experts/cuda/route_cuda.h"
#include "ops/linear/cuda/code_layout.h"
#include "ops/random_fill/random_codes_cuda.h"
#include "ops/random_fill/random_fill_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

// Code for other cards runs on a Hopper, too, but waits for nothing there.
#ifdef INFERNO_CUDA_90A
constexpr bool kBuiltForHopper = true;
#else
constexpr bool kBuiltForHopper = false;
#endif

int attribute(cudaDeviceAttr which) {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "cudaGetDevice");
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
  return value;
}

void require(bool holds, const char* field, const std::string& expected, std::uint64_t got) {
  if (holds) return;
  throw Error(ErrorCode::kOther,
              std::string(field) + ": a GPU expects " + expected + ", got " + std::to_string(got));
}

void refuse_format(const char* field, const std::string& expected, const WeightFormat& got) {
  throw Error(
      ErrorCode::kOther,
      std::string(field) + ": a GPU expects " + expected + ", got " +
          ops::weight_kind_name(got.kind) + (got.offsets ? " with offsets" : "") +
          (got.is_quantized() && got.group > 0 ? " in groups of " + std::to_string(got.group)
                                               : ""));
}

// What is no factor of a product, or has a kernel for elements only.
void require_same(const char* field, const WeightFormat& got, ops::Dtype activation) {
  if (got == activation) return;
  refuse_format(field, std::string("the activations' type, ") + ops::dtype_name(activation), got);
}

void require_product(const char* field, const WeightFormat& got, ops::Dtype activation) {
  if (got == activation || ops::cuda::has_code_layout(got)) return;
  refuse_format(
      field,
      std::string("the activations' type, ") + ops::dtype_name(activation) +
          ", fp8 or int8 with a scale for each row or 128 columns, int4 with one for each "
          "row, 32, 64 or 128 columns, or mxfp4",
      got);
}

// All layers' experts share one workspace and its plan.
void check_experts(const DecoderSpec& spec, const MlpSpec& mlp) {
  if (mlp.kind == MlpKind::Dense) return;
  const MlpSpec& first = *first_experts(spec);
  require_product("router", mlp.router.format, spec.activation);
  require_same("experts", mlp.gate_up.format, spec.activation);
  require_same("experts", mlp.down.format, spec.activation);
  const SharedExpertSpec& shared = mlp.shared;
  if (shared.intermediate_size > 0) {
    for (const WeightFormat& format : {shared.gate_up, shared.down}) {
      require_product("shared", format, spec.activation);
    }
    if (shared.has_gate) require_product("shared.gate", shared.gate, spec.activation);
    require(shared.intermediate_size % 8 == 0, "shared.intermediate_size", "a multiple of 8",
            shared.intermediate_size);
  }
  require(mlp.num_experts <= ops::cuda::kMaxExperts, "num_experts",
          "at most " + std::to_string(ops::cuda::kMaxExperts), mlp.num_experts);
  require(mlp.experts_per_token <= ops::cuda::kMaxExpertsPerToken, "experts_per_token",
          "at most " + std::to_string(ops::cuda::kMaxExpertsPerToken), mlp.experts_per_token);
  require(mlp.num_experts == first.num_experts &&
              mlp.experts_per_token == first.experts_per_token &&
              mlp.intermediate_size == first.intermediate_size,
          "num_experts", "alike experts in every layer that has them", mlp.num_experts);
}

}  // namespace

std::uint64_t CudaSizes::matrix_bytes(const ops::WeightShape& matrix) const {
  if (matrix.format.is_quantized()) return ops::cuda::CodeLayout(matrix).bytes;
  return std::uint64_t{matrix.num_rows} * matrix.num_columns * ops::dtype_bytes(matrix.dtype());
}

std::uint64_t CudaSizes::workspace_bytes(const DecoderSpec& spec, const ModelLimits& limits) const {
  return CudaWorkspace::bytes_needed(spec, limits);
}

bool CudaSizes::reads(MatrixRole role, const WeightFormat& format) const {
  return role == MatrixRole::Linear && ops::cuda::has_code_layout(format);
}

void CudaSizes::check(const DecoderSpec& spec, const ModelLimits& limits) const {
  if (!has_code_kernels_ && has_codes(spec)) {
    throw Error(ErrorCode::kOther,
                "weights: quantized ones want a GPU of compute capability 9.0 and a build for it");
  }
  if (spec.activation == ops::Dtype::F32) {
    throw Error(ErrorCode::kOther, "activation: a GPU expects f16 or bf16, got f32");
  }
  require_same("embedding", spec.embedding, spec.activation);
  require_product("head", spec.head.format, spec.activation);
  if (spec.kv != ops::Dtype::Fp8) require_same("kv", spec.kv, spec.activation);
  require(spec.hidden_size % 8 == 0 && spec.hidden_size <= ops::cuda::kMaxHiddenSize, "hidden_size",
          "a multiple of 8 up to " + std::to_string(ops::cuda::kMaxHiddenSize), spec.hidden_size);
  for (const RopeSpec& rope : spec.ropes) {
    require(rope.inv_freq.size() % 8 == 0, "rotary_dim", "a multiple of 16",
            2 * rope.inv_freq.size());
  }
  const AttentionSpec& first = spec.layers[0].attention;
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& attention = layer.attention;
    for (const LinearSpec& linear :
         {attention.qkv, attention.o, layer.mlp.gate_up, layer.mlp.down}) {
      require_product("weights", linear.format, spec.activation);
    }
    if (attention.output_gate) {
      require_product("output_gate", attention.gate, spec.activation);
    }
    require(layer.mlp.intermediate_size % 8 == 0, "intermediate_size", "a multiple of 8",
            layer.mlp.intermediate_size);
    ops::cuda::check_attention_cuda({.dtype = spec.activation,
                                     .num_blocks = 1,
                                     .block_size = limits.block_size,
                                     .num_kv_heads = attention.num_kv_heads,
                                     .head_dim = attention.head_dim,
                                     .fp8 = spec.kv == ops::Dtype::Fp8},
                                    attention.num_heads);
    require(attention.num_heads / attention.num_kv_heads == first.num_heads / first.num_kv_heads,
            "num_heads", "as many to a KV head in every layer", attention.num_heads);
    require(attention.qk_norm != QkNorm::PerRow || attention.q_size() <= ops::cuda::kMaxHiddenSize,
            "num_heads * head_dim",
            "at most " + std::to_string(ops::cuda::kMaxHiddenSize) + " of all heads under one norm",
            attention.q_size());
    check_experts(spec, layer.mlp);
  }
}

CudaBackend::CudaBackend(const DeviceOptions& options)
    : deterministic_(options.deterministic),
      reference_attention_(options.attention == AttentionBackend::Reference),
      dependent_launch_(kBuiltForHopper && attribute(cudaDevAttrComputeCapabilityMajor) == 9),
      sizes_(dependent_launch_),
      threads_(std::max(1U, options.num_threads)) {
  num_sms_ = static_cast<std::uint32_t>(attribute(cudaDevAttrMultiProcessorCount));
  stream_ = std::make_unique<CudaStream>();
  clock_ = std::make_unique<StepClock>();
  pool_ = std::make_unique<MemoryPool>(reserve_device_memory(options.pool_bytes));
  uploader_ = std::make_unique<CudaUploader>(threads_, stream_->get());
}

ops::cuda::CudaOp CudaBackend::op() const { return {stream_->get(), num_sms_, dependent_launch_}; }

void CudaBackend::write_rows(const MatrixRows& target, const ops::RowSource& source) {
  if (target.matrix.format.is_quantized()) {
    uploader_->upload_strips(target, source);
  } else {
    uploader_->upload_elements(target, source);
  }
}

void CudaBackend::randomise_rows(const MatrixRows& target, const NormalTable& normal,
                                 std::uint64_t key) {
  const std::span<const std::byte> table = normal.values();
  const ops::WeightShape& matrix = target.matrix;
  if (matrix.format.is_quantized()) {
    const auto alone = no_waiting_for_device();
    return ops::cuda::random_codes_cuda(
        op(), {.matrix = matrix, .key = key, .deviation = normal.deviation(), .out = target.data});
  }
  if (normal_table_.data() == nullptr || normal_dtype_ != matrix.dtype()) {
    // Two models may be filled by turns. What the stream still reads is not given back.
    check(cudaStreamSynchronize(stream_->get()), "cudaStreamSynchronize");
    normal_table_.reset();
    normal_table_ = PoolRange(*pool_, table.size());
    normal_dtype_ = matrix.dtype();
    check(cudaMemcpyAsync(normal_table_.data(), table.data(), table.size(), cudaMemcpyHostToDevice,
                          stream_->get()),
          "cudaMemcpyAsync");
  }
  const std::uint64_t row_bytes = matrix.num_columns * ops::dtype_bytes(matrix.dtype());
  const auto alone = no_waiting_for_device();
  ops::cuda::random_fill_cuda(op(), {.table = normal_table_.data(),
                                     .key = key,
                                     .num_rows = target.num_rows,
                                     .num_columns = matrix.num_columns,
                                     .dtype = matrix.dtype(),
                                     .out = target.data + target.first_row * row_bytes});
}

void CudaBackend::write_vector(float* target, std::span<const float> values) {
  // From memory that is not page-locked the runtime copies before it returns.
  check(cudaMemcpyAsync(target, values.data(), values.size_bytes(), cudaMemcpyHostToDevice,
                        stream_->get()),
        "cudaMemcpyAsync");
}

void CudaBackend::finish_writes() {
  uploader_->finish();
  check(cudaStreamSynchronize(stream_->get()), "cudaStreamSynchronize");
  normal_table_.reset();
}

std::unique_ptr<Forward> CudaBackend::make_forward(const ForwardParts& parts) {
  const auto alone = no_waiting_for_device();
  return std::make_unique<CudaForward>(
      CudaDevice{op(), *pool_, *clock_, deterministic_, reference_attention_}, parts);
}

}  // namespace inferno::engine
