// Which of a family of kernels multiplies with which format's codes.
#pragma once

#include <span>

#include "ops/linear/cuda/code_layout.h"
#include "ops/linear/cuda/linear_boxes.cuh"
#include "ops/linear/weight_format.h"

namespace inferno::ops::cuda {

// For each kind of codes its kernels, growing.
struct CodeKernels {
  using Variants = std::span<const boxes::Variant>;
  Variants (*fp8)(Dtype);
  Variants (*int8)(Dtype, bool offsets);
  Variants (*int4)(Dtype);
  Variants (*int4_offsets)(Dtype);
  Variants (*int4_small_groups)(Dtype, bool offsets);  // than a span
  Variants (*mxfp4)(Dtype);

  Variants of(const WeightFormat& format, Dtype dtype) const {
    const bool small_groups = format.group != 0 && format.group < kSpanColumns;
    switch (format.kind) {
      case WeightKind::Fp8:
        return fp8(dtype);
      case WeightKind::Int8:
        return int8(dtype, format.offsets);
      case WeightKind::Int4:
        if (small_groups) return int4_small_groups(dtype, format.offsets);
        return format.offsets ? int4_offsets(dtype) : int4(dtype);
      default:
        return mxfp4(dtype);
    }
  }

  // Calls visit(variant) for each that there is.
  template <typename Visit>
  void for_each(Visit visit) const {
    constexpr WeightFormat kFormats[] = {{WeightKind::Fp8},
                                         {WeightKind::Int8},
                                         {WeightKind::Int8, 0, true},
                                         {WeightKind::Int4},
                                         {WeightKind::Int4, 0, true},
                                         {WeightKind::Int4, 32},
                                         {WeightKind::Int4, 32, true},
                                         {WeightKind::Mxfp4, 32}};
    for (const WeightFormat& format : kFormats) {
      for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
        for (const boxes::Variant& variant : of(format, dtype)) visit(variant);
      }
    }
  }
};

}  // namespace inferno::ops::cuda
