#include "ops/linear/cuda/linear_cuda.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops/glu/glu_cuda.h"
#include "ops/linear/cuda/code_layout.h"
#include "ops/linear/cuda/cublaslt.h"
#include "ops/linear/cuda/dequantize_cuda.h"
#include "ops/linear/cuda/linear_fixups.h"
#include "ops/linear/cuda/linear_product.h"
#include "ops/linear/cuda/quantize_inputs_cuda.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {
namespace {

std::size_t row_bytes(std::uint32_t num_columns, Dtype dtype) {
  return std::size_t{num_columns} * dtype_bytes(dtype);
}

template <typename T>
T* advance(T* pointer, std::size_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return pointer == nullptr ? nullptr
                            : reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

// How a product is computed.
enum class Way {
  FewRows,   // by the kernels for few rows, some of them at a time
  Tiles,     // by the kernel of quantized matrices for more rows
  Codes,     // by cuBLASLt, of codes of e4m3
  Elements,  // by cuBLASLt, of elements
};

bool is_own(Way way) { return way == Way::FewRows || way == Way::Tiles; }

void check_product(const LinearInput& in, const DeviceMatrix& weight, Way way) {
  if (weight.num_columns % 8 != 0 || weight.num_columns == 0) {
    throw std::invalid_argument("other: product over " + std::to_string(weight.num_columns) +
                                " columns, expected a multiple of 8");
  }
  const bool known = weight.format.is_quantized() ? has_code_layout(weight.format)
                                                  : weight.format != WeightFormat(Dtype::F32);
  if (!known) {
    throw std::invalid_argument(
        std::string("other: weights of ") + weight_kind_name(weight.format.kind) +
        " in groups of " + std::to_string(weight.format.group) + ", which no kernel multiplies");
  }
  if (in.dtype == Dtype::F32 ||
      (!weight.format.is_quantized() && weight.format != WeightFormat(in.dtype))) {
    throw std::invalid_argument(std::string("other: product of ") + dtype_name(in.dtype) +
                                " with weights of " + weight_kind_name(weight.format.kind) +
                                ", expected the same");
  }
  if (way == Way::Elements && in.square_sums != nullptr) {
    throw std::invalid_argument("other: deferred normalisation of " +
                                std::to_string(in.num_tokens) + " rows, expected up to " +
                                std::to_string(kMaxFewRows));
  }
}

// Of a quantized matrix, as many rows as become elements at once. With slices that the L2 holds,
// products of a few hundred rows are too small to fill the device. Or inputs as codes.
constexpr std::size_t kSliceBytes = std::size_t{128} << 20;

std::uint32_t slice_rows(const DeviceMatrix& weight) {
  const std::size_t rows = kSliceBytes / row_bytes(weight.num_columns, Dtype::BF16);
  return static_cast<std::uint32_t>(std::max<std::size_t>(kStripRows, rows / 128 * 128));
}

// Rows [first, first + count).
LinearInput rows_of(const LinearInput& in, std::uint32_t num_columns, std::size_t first,
                    std::uint32_t count) {
  LinearInput part = in;
  part.num_tokens = count;
  part.h = advance(in.h, first * row_bytes(num_columns, in.dtype));
  part.square_sums =
      advance(in.square_sums, first * row_bytes(norm_parts(num_columns), Dtype::F32));
  return part;
}

// Whether cuBLASLt multiplies such codes as they are stored.
bool has_coded_products(const DeviceMatrix& weight) {
  return weight.format == WeightFormat(WeightKind::Fp8) && weight.num_rows % 16 == 0 &&
         weight.num_columns <= kMaxCodedColumns;
}

LtProduct lt_product(const LinearInput& in, const DeviceMatrix& weight, void* y) {
  return {.h = in.h, .num_tokens = in.num_tokens, .dtype = in.dtype, .weight = weight, .y = y};
}

}  // namespace

struct LinearCuda::Impl {
  Impl(const CudaOp& op, std::byte* workspace, std::uint32_t max_tokens)
      : few_rows_kernel(op),
        decode_rows_kernel(op),
        code_rows_kernel(op),
        code_tiles_kernel(op),
        cublaslt(workspace, max_tokens),
        slice(workspace + CublasLt::workspace_bytes()) {}

  bool few_rows(std::uint32_t num_tokens) const {
    return num_tokens <= kMaxFewRows || batch_invariant;
  }
  bool coded(std::uint32_t num_tokens, const DeviceMatrix& weight) const;
  bool tiled(std::uint32_t num_tokens, const DeviceMatrix& weight, Dtype dtype) const;
  // Throws std::invalid_argument where there is none.
  Way way_of(const LinearInput& in, const DeviceMatrix& weight) const;

  // Rows of h that a kernel for few rows takes, of such a matrix. Throws std::invalid_argument
  // where there is none.
  std::uint32_t rows_at_once(const DeviceMatrix& weight, Dtype dtype) const;

  // A product by the kernels for few rows.
  void multiply_few(const CudaOp& op, const FewRowsProduct& product) const;

  // A product by cuBLASLt of this input, and the bias.
  void multiply_many(const CudaOp& op, const LinearInput& in, const LtProduct& product,
                     const float* bias);
  void multiply_slices(const CudaOp& op, const LtProduct& product);
  void multiply_codes(const CudaOp& op, const LinearInput& in, const LtProduct& product);

  FewRowsKernel few_rows_kernel;
  DecodeRowsKernel decode_rows_kernel;
  CodeRowsKernel code_rows_kernel;
  CodeTilesKernel code_tiles_kernel;
  CublasLt cublaslt;
  std::byte* slice;  // [kSliceBytes]
  bool batch_invariant = false;
};

bool LinearCuda::Impl::coded(std::uint32_t num_tokens, const DeviceMatrix& weight) const {
  return !batch_invariant && num_tokens > kMaxElementRows && code_rows_kernel.available() &&
         has_coded_products(weight);
}

bool LinearCuda::Impl::tiled(std::uint32_t num_tokens, const DeviceMatrix& weight,
                             Dtype dtype) const {
  const bool may_be = num_tokens <= kMaxTiledRows && code_tiles_kernel.takes(weight.format);
  if (batch_invariant || !may_be) return false;
  // The kernel for few rows reads W anew for each call, and of many columns takes few rows in one.
  const std::uint32_t few =
      std::min(kMaxFewCodeRows, 2 * CodeRowsKernel::rows_at_once(weight, dtype));
  return num_tokens > few;
}

Way LinearCuda::Impl::way_of(const LinearInput& in, const DeviceMatrix& weight) const {
  const Way way = coded(in.num_tokens, weight)             ? Way::Codes
                  : tiled(in.num_tokens, weight, in.dtype) ? Way::Tiles
                  : few_rows(in.num_tokens)                ? Way::FewRows
                                                           : Way::Elements;
  check_product(in, weight, way);
  return way;
}

std::uint32_t LinearCuda::Impl::rows_at_once(const DeviceMatrix& weight, Dtype dtype) const {
  if (!weight.format.is_quantized()) return kCallRows;
  if (!code_rows_kernel.available()) {
    throw std::invalid_argument("other: quantized weights need a GPU of compute capability 9.0");
  }
  const std::uint32_t rows = CodeRowsKernel::rows_at_once(weight, dtype);
  if (rows > 0) return rows;
  throw std::invalid_argument("other: product of " + std::to_string(weight.num_columns) +
                              " columns with weights of " + weight_kind_name(weight.format.kind) +
                              ", more than its kernel keeps");
}

void LinearCuda::Impl::multiply_few(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  if (tiled(product.in.num_tokens, weight, product.in.dtype)) {
    return code_tiles_kernel(op, product);
  }
  const bool gate = product.epilogue == Epilogue::Gate;
  const bool float_out =
      product.epilogue == Epilogue::Add || product.epilogue == Epilogue::StoreFloat;
  const std::uint32_t outputs = gate ? weight.num_rows / 2 : weight.num_rows;
  const Dtype dtype = product.in.dtype;
  const std::size_t out_bytes = row_bytes(outputs, float_out ? Dtype::F32 : dtype);
  const std::uint32_t at_once = rows_at_once(weight, dtype);
  for (std::size_t first = 0; first < product.in.num_tokens; first += at_once) {
    const auto rest = product.in.num_tokens - static_cast<std::uint32_t>(first);
    FewRowsProduct part = product;
    part.in = rows_of(product.in, weight.num_columns, first, std::min(at_once, rest));
    part.out = advance(part.out, first * out_bytes);
    part.next.h = advance(part.next.h, first * row_bytes(outputs, dtype));
    part.next.square_sums =
        advance(part.next.square_sums, first * row_bytes(norm_parts(outputs), Dtype::F32));
    if (weight.format.is_quantized()) {
      code_rows_kernel(op, part);
    } else if (!batch_invariant && decode_rows_kernel.takes(part)) {
      decode_rows_kernel(op, part);
    } else if (few_rows_kernel.available()) {
      few_rows_kernel(op, part);
    } else {
      few_rows_plain(op, part);
    }
  }
}

void LinearCuda::Impl::multiply_many(const CudaOp& op, const LinearInput& in,
                                     const LtProduct& product, const float* bias) {
  if (way_of(in, product.weight) == Way::Codes) {
    multiply_codes(op, in, product);
  } else if (product.weight.format.is_quantized()) {
    multiply_slices(op, product);
  } else {
    cublaslt.multiply(op, product);
  }
  if (bias == nullptr) return;
  add_bias_cuda(op, {.bias = bias,
                     .num_tokens = product.num_tokens,
                     .num_outputs = product.weight.num_rows,
                     .dtype = product.float_y ? Dtype::F32 : product.dtype,
                     .scale = product.scale,
                     .y = product.y});
}

void LinearCuda::Impl::multiply_slices(const CudaOp& op, const LtProduct& product) {
  const DeviceMatrix& weight = product.weight;
  const std::uint32_t at_once = slice_rows(weight);
  for (std::uint32_t first = 0; first < weight.num_rows; first += at_once) {
    const std::uint32_t count = std::min(at_once, weight.num_rows - first);
    dequantize_cuda(op, {.weight = weight,
                         .first_row = first,
                         .num_rows = count,
                         .dtype = product.dtype,
                         .out = slice});
    LtProduct part = product;
    part.weight = {slice, count, weight.num_columns, product.dtype};
    part.y = advance(part.y, row_bytes(first, product.float_y ? Dtype::F32 : product.dtype));
    part.y_stride = weight.num_rows;
    cublaslt.multiply(op, part);
  }
}

void LinearCuda::Impl::multiply_codes(const CudaOp& op, const LinearInput& in,
                                      const LtProduct& product) {
  const DeviceMatrix& weight = product.weight;
  const CodeLayout layout({weight.num_rows, weight.num_columns, weight.format});
  const auto* bytes = static_cast<const std::byte*>(weight.data);
  const std::uint32_t columns = layout.num_spans * kSpanColumns;
  const auto at_once = static_cast<std::uint32_t>(kSliceBytes / (columns + sizeof(float)));
  auto* scales = reinterpret_cast<float*>(slice);
  auto* codes = reinterpret_cast<std::uint8_t*>(scales + (at_once + 63) / 64 * 64);
  for (std::uint32_t first = 0; first < in.num_tokens; first += at_once) {
    const std::uint32_t count = std::min(at_once, in.num_tokens - first);
    quantize_inputs_cuda(op, {.in = rows_of(in, weight.num_columns, first, count),
                              .num_columns = weight.num_columns,
                              .codes = codes,
                              .scales = scales});
    LtProduct part = product;
    part.h = codes;
    part.num_tokens = count;
    part.weight.num_columns = columns;
    part.scales = {scales, reinterpret_cast<const float*>(bytes + layout.row_scales_at)};
    part.y = advance(
        part.y, first * row_bytes(weight.num_rows, product.float_y ? Dtype::F32 : product.dtype));
    cublaslt.multiply(op, part);
  }
}

LinearCuda::LinearCuda(const CudaOp& op, void* workspace, std::uint32_t max_tokens)
    : impl_(std::make_unique<Impl>(op, static_cast<std::byte*>(workspace), max_tokens)) {}

LinearCuda::~LinearCuda() = default;

std::size_t LinearCuda::workspace_bytes(bool quantized) {
  return CublasLt::workspace_bytes() + (quantized ? kSliceBytes : 0);
}

void LinearCuda::set_batch_invariant(bool on) { impl_->batch_invariant = on; }

void LinearCuda::store(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight,
                       const float* bias, void* out) {
  const bool own = is_own(impl_->way_of(in, weight));
  if (in.num_tokens == 0 || weight.num_rows == 0) return;
  if (own) {
    impl_->multiply_few(op, {in, weight, Epilogue::Store, bias, out});
  } else {
    impl_->multiply_many(op, in, lt_product(in, weight, out), bias);
  }
}

void LinearCuda::store_f32(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight,
                           const float* bias, float* out) {
  const bool own = is_own(impl_->way_of(in, weight));
  if (in.num_tokens == 0 || weight.num_rows == 0) return;
  if (own) {
    impl_->multiply_few(op, {in, weight, Epilogue::StoreFloat, bias, out});
  } else {
    LtProduct product = lt_product(in, weight, out);
    product.float_y = true;
    impl_->multiply_many(op, in, product, bias);
  }
}

bool LinearCuda::defers(std::uint32_t num_tokens, Dtype dtype, const DeviceMatrix& weight) const {
  // x * weight, not yet divided by its norm, may leave the range of f16.
  return dtype == Dtype::BF16 && impl_->few_rows(num_tokens) &&
         impl_->few_rows_kernel.available() && !impl_->coded(num_tokens, weight);
}

bool LinearCuda::lets_next_start(const LinearInput& in, const DeviceMatrix& weight) const {
  const bool small = !weight.format.is_quantized() && !impl_->batch_invariant &&
                     impl_->decode_rows_kernel.takes({.in = in, .weight = weight});
  return is_own(impl_->way_of(in, weight)) && !small;
}

bool LinearCuda::add(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight,
                     const float* bias, const Residual& residual) {
  const bool own = is_own(impl_->way_of(in, weight));
  if (in.num_tokens == 0 || weight.num_rows == 0) return false;
  const bool defers_next =
      residual.next.weight != nullptr && defers(in.num_tokens, in.dtype, weight);
  if (own) {
    impl_->multiply_few(op, {.in = in,
                             .weight = weight,
                             .epilogue = Epilogue::Add,
                             .bias = bias,
                             .out = residual.x,
                             .scale = residual.scale,
                             .next = defers_next ? residual.next : NextNorm{}});
  } else {
    LtProduct product = lt_product(in, weight, residual.x);
    product.float_y = product.add = true;
    product.scale = residual.scale;
    impl_->multiply_many(op, in, product, bias);
  }
  if (defers_next || residual.next.weight == nullptr) return defers_next;
  rms_norm_cuda(op, {.x = residual.x,
                     .weight = residual.next.weight,
                     .eps = residual.next.eps,
                     .num_tokens = in.num_tokens,
                     .hidden_size = weight.num_rows,
                     .dtype = in.dtype,
                     .out = residual.next.h});
  return false;
}

void LinearCuda::gate(const CudaOp& op, const LinearInput& in, const DeviceMatrix& weight,
                      const float* bias, const Gated& gated) {
  const bool own = is_own(impl_->way_of(in, weight));
  if (weight.num_rows % 16 != 0) {
    throw std::invalid_argument("other: gate and up of " + std::to_string(weight.num_rows) +
                                " rows together, expected a multiple of 16");
  }
  if (in.num_tokens == 0 || weight.num_rows == 0) return;
  if (own) {
    impl_->multiply_few(op, {.in = in,
                             .weight = weight,
                             .epilogue = Epilogue::Gate,
                             .bias = bias,
                             .out = gated.out,
                             .activation = gated.activation});
    return;
  }
  impl_->multiply_many(op, in, lt_product(in, weight, gated.scratch), bias);
  glu_cuda(op, {.gate_up = gated.scratch,
                .num_tokens = in.num_tokens,
                .intermediate_size = weight.num_rows / 2,
                .activation = gated.activation,
                .dtype = in.dtype,
                .out = gated.out});
}

}  // namespace inferno::ops::cuda
