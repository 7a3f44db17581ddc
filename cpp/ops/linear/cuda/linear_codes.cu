#include <algorithm>

#include "ops/linear/cuda/linear_codes.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace codes;

std::span<const Variant> variants_of(const WeightFormat& format, Dtype dtype) {
  const bool small_groups = format.group != 0 && format.group < kSpanColumns;
  switch (format.kind) {
    case WeightKind::Fp8:
      return fp8_variants(dtype);
    case WeightKind::Int8:
      return int8_variants(dtype);
    case WeightKind::Int4:
      return small_groups ? int4_small_group_variants(dtype) : int4_variants(dtype);
    default:
      return mxfp4_variants(dtype);
  }
}

constexpr WeightFormat kFormats[] = {{WeightKind::Fp8},
                                     {WeightKind::Int8},
                                     {WeightKind::Int4},
                                     {WeightKind::Int4, 32},
                                     {WeightKind::Mxfp4, 32}};

// Of a row-major matrix, whose bytes are copied by two as if they were elements; else of its
// strips.
CUtensorMap map_of(const FewRowsProduct& product, const CodeLayout& layout) {
  const DeviceMatrix& weight = product.weight;
  const bool gate = product.epilogue == Epilogue::Gate;
  if (layout.row_major) {
    const DeviceMatrix pairs{weight.data, weight.num_rows, layout.num_spans * kSpanColumns / 2,
                             Dtype::BF16};
    return gate ? paired_map(pairs, kTileRows) : box_map(pairs, kTileRows);
  }
  return runs_map({.data = static_cast<const std::byte*>(weight.data),
                   .run_bytes = layout.span_bytes,
                   .num_runs = layout.num_spans,
                   .num_rows = layout.num_strips},
                  kTileStrips, gate);
}

}  // namespace

CodeRowsKernel::CodeRowsKernel(const CudaOp& op) {
  if (!op.dependent_launch) return;
  std::uint32_t clusters = op.num_sms;
  for (const WeightFormat& format : kFormats) {
    for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
      for (const Variant& variant : variants_of(format, dtype)) {
        clusters = std::min(clusters, clusters_at_once(op, variant));
      }
    }
  }
  num_clusters_ = clusters;
}

void CodeRowsKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const WeightFormat& format = weight.format;
  const CodeLayout layout({weight.num_rows, weight.num_columns, format});
  const auto variants = variants_of(format, product.in.dtype);
  const Variant& variant = *std::ranges::find_if(
      variants, [&](const Variant& one) { return product.in.num_tokens <= one.max_tokens; });
  const DeviceMatrix input{product.in.h, product.in.num_tokens, weight.num_columns,
                           product.in.dtype};
  const auto* bytes = static_cast<const std::byte*>(weight.data);
  FewRowsArgs args = few_rows_args(product, kSpanColumns);
  args.weight_map = map_of(product, layout);
  args.input_map = box_map(input, variant.max_tokens);
  args.codes = {.row_major = layout.row_major,
                .span_bytes = static_cast<std::uint32_t>(layout.span_bytes),
                .row_scales = layout.groups > 0 ? nullptr
                                                : reinterpret_cast<const std::uint32_t*>(
                                                      bytes + layout.row_scales_at),
                .log_group_steps = layout.log_group_steps(),
                .offsets = format.offsets};
  launch_few_rows(op, variant, args, num_clusters_);
}

}  // namespace inferno::ops::cuda
