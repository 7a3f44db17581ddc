// The border's decoder as the engine's.
#pragma once

#include "engine/spec/spec.h"

namespace inferno {

struct DecoderSpec;
struct WeightFormat;

ops::WeightFormat to_engine(const WeightFormat& format);
engine::DecoderSpec to_engine(const DecoderSpec& spec);

}  // namespace inferno
