#include <algorithm>

#include "ops/linear/cuda/code_kernels.h"
#include "ops/linear/cuda/linear_code_sets.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace codes;

constexpr CodeKernels kKernels{
    fp8_variants,  int8_variants, int4_variants, int4_offset_variants, int4_small_group_variants,
    mxfp4_variants};

// Whether a block can take its share of the matrix's columns.
bool fits(const Variant& variant, std::uint32_t num_columns) {
  const std::uint32_t boxes = (num_columns + kSpanColumns - 1) / kSpanColumns;
  return (boxes + kCluster - 1) / kCluster <= variant.max_boxes;
}

// Those with inputs as two codes where one takes such a matrix, else the others: the two sum in
// different ways.
std::span<const Variant> variants_of(const DeviceMatrix& weight, Dtype dtype) {
  if (weight.format == WeightFormat(WeightKind::Fp8)) {
    const auto variants = split_variants(dtype);
    const auto takes = [&](const Variant& one) { return fits(one, weight.num_columns); };
    if (std::ranges::any_of(variants, takes)) return variants;
  }
  return kKernels.of(weight.format, dtype);
}

// Stages that are under way at once: of codes of 8 bits as many as keep the memory busy, since
// everything else would wait behind more. Of 4 bits all: their kernels wait for each other more
// than for the memory.
std::uint32_t in_flight(const FewRowsArgs& args, const WeightFormat& format) {
  constexpr std::uint32_t kBytes = 48 * 1024;
  if (weight_bits(format.kind) < 8) return ~0U;
  return std::max(2U, kBytes / (args.warps_per_tile * kWarpStrips * args.codes.span_bytes));
}

}  // namespace

// Of a row-major matrix bytes are copied by two as if they were elements.
CUtensorMap codes::codes_map(const FewRowsProduct& product, const CodeLayout& layout,
                             std::uint32_t rows) {
  const DeviceMatrix& weight = product.weight;
  const bool gate = product.epilogue == Epilogue::Gate;
  if (layout.row_major) {
    const DeviceMatrix pairs{weight.data, weight.num_rows, layout.num_spans * kSpanColumns / 2,
                             Dtype::BF16};
    return gate ? paired_map(pairs, rows) : box_map(pairs, rows);
  }
  return runs_map({.data = static_cast<const std::byte*>(weight.data),
                   .run_bytes = layout.span_bytes,
                   .num_runs = layout.num_spans,
                   .num_rows = layout.num_strips},
                  rows / kStripRows, gate);
}

CodesArgs codes::codes_args(const DeviceMatrix& weight, const CodeLayout& layout) {
  const auto* bytes = static_cast<const std::byte*>(weight.data);
  return {.row_major = layout.row_major,
          .span_bytes = static_cast<std::uint32_t>(layout.span_bytes),
          .row_scales = layout.groups > 0
                            ? nullptr
                            : reinterpret_cast<const std::uint32_t*>(bytes + layout.row_scales_at),
          .log_group_steps = layout.log_group_steps()};
}

CodeRowsKernel::CodeRowsKernel(const CudaOp& op) {
  if (!op.dependent_launch) return;
  std::uint32_t clusters = op.num_sms;
  const auto count = [&](const Variant& variant) {
    clusters = std::min(clusters, clusters_at_once(op, variant));
  };
  kKernels.for_each(count);
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    std::ranges::for_each(split_variants(dtype), count);
  }
  num_clusters_ = clusters;
}

std::uint32_t CodeRowsKernel::rows_at_once(const DeviceMatrix& weight, Dtype dtype) {
  std::uint32_t rows = 0;
  for (const Variant& variant : variants_of(weight, dtype)) {
    if (fits(variant, weight.num_columns)) rows = std::max(rows, variant.max_tokens);
  }
  return rows;
}

void CodeRowsKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const CodeLayout layout({weight.num_rows, weight.num_columns, weight.format});
  const auto variants = variants_of(weight, product.in.dtype);
  const Variant& variant = *std::ranges::find_if(variants, [&](const Variant& one) {
    return product.in.num_tokens <= one.max_tokens && fits(one, weight.num_columns);
  });
  const DeviceMatrix input{product.in.h, product.in.num_tokens, weight.num_columns,
                           product.in.dtype};
  FewRowsArgs args = few_rows_args(product, kSpanColumns, num_clusters_);
  args.weight_map = codes_map(product, layout, args.warps_per_tile * kWarpRows);
  args.input_map = box_map(input, variant.max_tokens);
  args.codes = codes_args(weight, layout);
  args.in_flight = in_flight(args, weight.format);
  launch_few_rows(op, variant, args, num_clusters_);
}

}  // namespace inferno::ops::cuda
