// Formats of weights as the benchmarks' command lines name them.
#pragma once

#include <map>
#include <string>

#include "ops/linear/weight_format.h"

namespace inferno::lab {

inline const std::map<std::string, ops::WeightFormat, std::less<>> kFormats = {
    {"bf16", ops::WeightFormat(ops::Dtype::BF16)},
    {"fp8", {ops::WeightKind::Fp8}},
    {"int8", {ops::WeightKind::Int8}},
    {"int4", {ops::WeightKind::Int4, 128}},
    {"mxfp4", {ops::WeightKind::Mxfp4, 32}}};

}  // namespace inferno::lab
