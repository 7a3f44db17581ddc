// A warp takes a span of a strip after the other, as the kernels for few rows do; its lanes then
// exchange what they have, so that each writes 16 columns of its row.
#include <algorithm>

#include "ops/cuda/cuda_device.cuh"
#include "ops/linear/cuda/dequantize_cuda.h"
#include "ops/linear/cuda/weight_codes.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kWarps = 8;
constexpr int kSteps = kSpanColumns / 16;

struct KernelArgs {
  const std::byte* strips;          // of the first row
  const std::uint32_t* row_scales;  // of the first row, or null
  std::uint32_t num_rows;
  std::uint32_t num_columns;
  std::uint32_t num_spans;
  std::uint32_t span_bytes;
  std::uint32_t code_bytes;
  std::uint32_t log_group_steps;
  bool offsets;
  bool row_major;
  void* out;
};

template <typename Element>
__device__ std::uint32_t scaled(std::uint32_t pair, std::uint32_t word, bool offsets) {
  if (offsets) pair = shifted<Element>(pair, shift_of<Element>(word));
  const float scale = scale_of(word, offsets);
  Pair<Element> values = as_pair<Element>(pair);
  values.x = from_float<Element>(scale * to_float(values.x));
  values.y = from_float<Element>(scale * to_float(values.y));
  return bits_of<Element>(values);
}

template <WeightKind kKind, typename Element>
__device__ void dequantize_span(const KernelArgs& args, std::uint32_t strip, std::uint32_t span) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t row = strip * kStripRows + lane / 4;
  const std::byte* from =
      args.strips + (std::size_t{strip} * args.num_spans + span) * args.span_bytes;
  LaneSpan<kKind> codes;
  if constexpr (LaneSpan<kKind>::kBytes) {
    if (args.row_major) {
      codes.load_row(args.strips + (std::size_t{row} * args.num_spans + span) * kSpanColumns,
                     lane % 4);
    } else {
      codes.load(from, lane);
    }
  } else {
    codes.load(from, lane);
  }
  const auto* words = reinterpret_cast<const std::uint32_t*>(from + args.code_bytes);
  const bool exists = row < args.num_rows;
  Element* out = static_cast<Element*>(args.out) + std::size_t{row} * args.num_columns;
#pragma unroll
  for (int four = 0; four < kSteps; four += 4) {
    std::uint32_t first[4];
    std::uint32_t second[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t group = (four + i) >> args.log_group_steps;
      const std::uint32_t word = args.row_scales == nullptr ? words[group * kStripRows + lane / 4]
                                 : exists                   ? args.row_scales[row]
                                                            : 0;
      codes.template pairs<Element>(four + i, first[i], second[i]);
      first[i] = scaled<Element>(first[i], word, args.offsets);
      second[i] = scaled<Element>(second[i], word, args.offsets);
    }
    transpose(first);
    transpose(second);
    const std::uint32_t column = span * kSpanColumns + (four + lane % 4) * 16;
    if (exists && column < args.num_columns) {
      *reinterpret_cast<uint4*>(out + column) = {first[0], first[1], first[2], first[3]};
    }
    if (exists && column + 8 < args.num_columns) {
      *reinterpret_cast<uint4*>(out + column + 8) = {second[0], second[1], second[2], second[3]};
    }
  }
}

template <WeightKind kKind, typename Element>
__global__ void __launch_bounds__(kWarps * 32) dequantize_kernel(const KernelArgs args) {
  let_next_start();
  wait_for_previous();  // whoever read `out` last
  const std::uint32_t num_strips = (args.num_rows + kStripRows - 1) / kStripRows;
  const std::uint32_t total = num_strips * args.num_spans;
  for (std::uint32_t i = blockIdx.x * kWarps + threadIdx.x / 32; i < total;
       i += gridDim.x * kWarps) {
    dequantize_span<kKind, Element>(args, i / args.num_spans, i % args.num_spans);
  }
}

template <typename Element>
auto kernel_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::Fp8:
      return dequantize_kernel<WeightKind::Fp8, Element>;
    case WeightKind::Int8:
      return dequantize_kernel<WeightKind::Int8, Element>;
    case WeightKind::Int4:
      return dequantize_kernel<WeightKind::Int4, Element>;
    default:
      return dequantize_kernel<WeightKind::Mxfp4, Element>;
  }
}

}  // namespace

void dequantize_cuda(const CudaOp& op, const DequantizeArgs& args) {
  if (args.num_rows == 0) return;
  const DeviceMatrix& weight = args.weight;
  const CodeLayout layout({weight.num_rows, weight.num_columns, weight.format});
  const auto* bytes = static_cast<const std::byte*>(weight.data);
  const auto* row_scales = reinterpret_cast<const std::uint32_t*>(bytes + layout.row_scales_at);
  const KernelArgs kernel_args{
      .strips = bytes + args.first_row / kStripRows * layout.strip_bytes,
      .row_scales = layout.groups > 0 ? nullptr : row_scales + args.first_row,
      .num_rows = args.num_rows,
      .num_columns = weight.num_columns,
      .num_spans = layout.num_spans,
      .span_bytes = static_cast<std::uint32_t>(layout.span_bytes),
      .code_bytes = layout.code_bytes,
      .log_group_steps = layout.log_group_steps(),
      .offsets = weight.format.offsets,
      .row_major = layout.row_major,
      .out = args.out};
  const auto kernel = args.dtype == Dtype::BF16 ? kernel_of<__nv_bfloat16>(weight.format.kind)
                                                : kernel_of<__half>(weight.format.kind);
  const std::uint32_t strips = (args.num_rows + kStripRows - 1) / kStripRows;
  const std::uint32_t spans = strips * layout.num_spans;
  const std::uint32_t blocks = std::min((spans + kWarps - 1) / kWarps, 8 * op.num_sms);
  launch(op, kernel, {blocks, kWarps * 32}, kernel_args);
}

}  // namespace inferno::ops::cuda
