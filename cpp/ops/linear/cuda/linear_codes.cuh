// Products of few rows with a quantized matrix at the memory's pace: linear_boxes.cuh's boxes, of
// 16 strips of a span each (code_layout.h). A warp has two strips, whose codes become elements in
// its registers, and multiplies them with mma.m16n8k16. The products of a group are summed by
// themselves and their sum is scaled in float, so a scale costs no rounding.
#pragma once

#include <span>

#include "ops/linear/cuda/linear_handover.cuh"
#include "ops/linear/cuda/weight_codes.cuh"

namespace inferno::ops::cuda::codes {

using namespace boxes;

constexpr std::uint32_t kSpanSteps = kSpanColumns / 16;
constexpr std::uint32_t kTileStrips = kTileRows / kStripRows;

// kGroupSteps: steps of 16 columns that are summed before they are scaled, which divide a group.
template <WeightKind kKindOf, std::uint32_t kGroupStepsOf>
struct Codes {
  static constexpr WeightKind kKind = kKindOf;
  static constexpr std::uint32_t kGroupSteps = kGroupStepsOf;
  static constexpr std::uint32_t kCodeBytes = kStripRows * kSpanColumns * weight_bits(kKind) / 8;
  static constexpr std::uint32_t kMaxSpanBytes =
      kCodeBytes + kSpanSteps / kGroupSteps * kStripRows * kScaleBytes;
};

template <typename CodesOf, int kTokensOf>
struct CodeStage {
  static constexpr int kTokens = kTokensOf;
  static constexpr std::uint32_t kColumns = kSpanColumns;
  static constexpr std::uint32_t kWeightBytes =
      (kTileStrips * CodesOf::kMaxSpanBytes + kSwizzleAlignment - 1) / kSwizzleAlignment *
      kSwizzleAlignment;

#ifdef INFERNO_SM90A
  __device__ static std::uint32_t weight_bytes(const FewRowsArgs& args) {
    return kTileStrips * args.codes.span_bytes;
  }
  __device__ static void copy_weights(const FewRowsArgs& args, const BoxWalk& walk,
                                      std::uint32_t to, std::uint64_t* full, std::uint64_t policy) {
    const std::uint32_t strip = walk.tile() * (args.outputs_per_tile / kStripRows);
    if (args.epilogue.kind == Epilogue::Gate) {
      copy_stack_boxes(to, &args.weight_map, {walk.box(), 0, strip}, full, policy);
    } else {
      copy_boxes(to, &args.weight_map, {walk.box(), strip}, full, policy);
    }
  }
#endif
};

#ifdef INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
class Consumer {
 public:
  __device__ Consumer(const FewRowsArgs& args, const Shared& shared)
      : args_(args),
        shared_(shared),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        handover_(args, shared) {}

  __device__ void run() {
    handover_.run([this](const Tiles& tiles, float(&sums)[kCount]) {
      load_row_scales(tiles.tile());
      for (std::uint32_t box = 0; box < tiles.num_boxes(); ++box) {
        wait_barrier(&shared_.full[at_.stage], at_.parity);
        multiply_stage(at_.stage, sums);
        __syncwarp();
        if (lane_ == 0) arrive(&shared_.empty[at_.stage]);
        at_.advance();
      }
    });
  }

 private:
  using Stage = CodeStage<CodesOf, kTokens>;
  using Ring = boxes::Ring<Stage>;
  using Span = LaneSpan<CodesOf::kKind>;
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr int kCount = kTokens / 2;             // sums of a thread
  static constexpr std::uint32_t kGroupSteps = CodesOf::kGroupSteps;

  // Scale words of a thread's rows in the warp's two strips.
  struct Words {
    std::uint32_t at[2];
  };

  __device__ void load_row_scales(std::uint32_t tile) {
    const CodesArgs& codes = args_.codes;
    if (codes.row_scales == nullptr) return;
    const bool gate = args_.epilogue.kind == Epilogue::Gate;
    const std::uint32_t outputs = args_.outputs_per_tile / kConsumers;
    const std::uint32_t first = tile * args_.outputs_per_tile + warp_ * outputs + lane_ / 4;
    const std::uint32_t second = first + (gate ? args_.epilogue.num_outputs : kStripRows);
    // Beyond the last output nothing is written.
    const bool exists = first < args_.epilogue.num_outputs;
    row_words_.at[0] = exists ? codes.row_scales[first] : 0;
    row_words_.at[1] =
        exists && (gate || second < args_.epilogue.num_outputs) ? codes.row_scales[second] : 0;
  }

  __device__ Words scale_words(const std::byte* strips, std::uint32_t step) const {
    const CodesArgs& codes = args_.codes;
    if (codes.row_scales != nullptr) return row_words_;
    const std::uint32_t at =
        CodesOf::kCodeBytes +
        ((step >> codes.log_group_steps) * kStripRows + lane_ / 4) * kScaleBytes;
    return {{*reinterpret_cast<const std::uint32_t*>(strips + at),
             *reinterpret_cast<const std::uint32_t*>(strips + codes.span_bytes + at)}};
  }

  __device__ void multiply_stage(std::uint32_t stage, float (&sums)[kCount]) const {
    const std::uint32_t stage_at = stage * Ring::kStageBytes;
    const std::byte* strips = shared_.ring_data + stage_at + 2 * warp_ * args_.codes.span_bytes;
    const std::uint32_t input = shared_.ring + stage_at + Stage::kWeightBytes;
    Span spans[2];
    spans[0].load(strips, lane_);
    spans[1].load(strips + args_.codes.span_bytes, lane_);
#pragma unroll
    for (std::uint32_t first = 0; first < kSpanSteps; first += kGroupSteps) {
      const Words words = scale_words(strips, first);
      float group[kGroups][4] = {};
#pragma unroll
      for (std::uint32_t step = first; step < first + kGroupSteps; step += 2) {
        multiply_steps(spans, step, words, input, group);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scale = scale_of(words.at[i / 2 % 2], args_.codes.offsets);
        sums[i] = fmaf(scale, group[i / 4][i % 4], sums[i]);
      }
    }
  }

  // Two steps, as ldmatrix brings the input. The swizzle: in row r of a part, the 16 bytes numbered
  // c lie at c ^ (r % 8).
  __device__ void multiply_steps(const Span (&spans)[2], std::uint32_t step, const Words& words,
                                 std::uint32_t input, float (&sums)[kGroups][4]) const {
    std::uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      spans[0].template pairs<Element>(step + i, a[i][0], a[i][2]);
      spans[1].template pairs<Element>(step + i, a[i][1], a[i][3]);
    }
    if (args_.codes.offsets) shift(words, a);
    const std::uint32_t row = lane_ % 8;
    const std::uint32_t chunk = (step % 4 * 2 + lane_ / 8) ^ row;
    const std::uint32_t part =
        input + step / 4 * Ring::kPartBytes + row * kBoxRowBytes + (chunk << 4);
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const Fragments b = load_matrices(part + group * 8 * kBoxRowBytes);
      mma_16816<Element>(sums[group], a[0], b.at[0], b.at[1]);
      mma_16816<Element>(sums[group], a[1], b.at[2], b.at[3]);
    }
  }

  __device__ static void shift(const Words& words, std::uint32_t (&a)[2][4]) {
#pragma unroll
    for (int strip = 0; strip < 2; ++strip) {
      const Pair<Element> by = shift_of<Element>(words.at[strip]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i][strip] = shifted<Element>(a[i][strip], by);
        a[i][strip + 2] = shifted<Element>(a[i][strip + 2], by);
      }
    }
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  Handover<Element, kTokens, true> handover_;
  RingPosition<Ring::kStages> at_;
  Words row_words_{};
};

#endif  // INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    code_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  run_block<CodeStage<CodesOf, kTokens>, Consumer<CodesOf, Element, kTokens>>(args);
#endif
}

template <typename CodesOf, typename Element, int kTokens>
constexpr Variant kVariant = {code_rows_kernel<CodesOf, Element, kTokens>,
                              Ring<CodeStage<CodesOf, kTokens>>::kSharedBytes, kTokens};

// Growing; the last takes kCallRows.
template <typename CodesOf, typename Element>
constexpr Variant kVariants[] = {kVariant<CodesOf, Element, 8>, kVariant<CodesOf, Element, 16>,
                                 kVariant<CodesOf, Element, 32>, kVariant<CodesOf, Element, 64>};

template <typename CodesOf>
std::span<const Variant> variants_of(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kVariants<CodesOf, __nv_bfloat16>)
                              : std::span(kVariants<CodesOf, __half>);
}

// Of a format that has_code_layout, for activations of `dtype`; each kind of codes is a file.
std::span<const Variant> fp8_variants(Dtype dtype);
std::span<const Variant> int8_variants(Dtype dtype);
std::span<const Variant> int4_variants(Dtype dtype);
std::span<const Variant> int4_small_group_variants(Dtype dtype);  // of less than a span
std::span<const Variant> mxfp4_variants(Dtype dtype);

}  // namespace inferno::ops::cuda::codes
