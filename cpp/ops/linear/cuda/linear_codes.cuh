// Products of few rows with a quantized matrix at the memory's pace: linear_boxes.cuh's boxes, of
// 16 strips of a span each (code_layout.h). A warp has two strips, whose codes become elements in
// its registers, and multiplies them: of few tokens by itself with mma.m16n8k16, which waits for no
// other warp; of more as a warpgroup with wgmma, which reads the tokens once for 64 rows. Both give
// the same bits (linear_codes_test.cc). The products of a group are summed by themselves and their
// sum is scaled in float, so a scale costs no rounding.
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
  // Two, so that one makes elements of codes while the other's products are under way; of more
  // tokens a thread's sums leave no registers for it.
  static constexpr std::uint32_t kSets = kTokens <= 32 ? 2 : 1;
  static constexpr std::uint32_t kFinishers = kTokens <= 32 ? kTokens / 8 : 0;
  static constexpr bool kByWarps = kTokens <= 16;
  static constexpr std::uint32_t kPlaces = kFinishers > 0 ? 4 : 2;
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
    const bool gate = args.epilogue.kind == Epilogue::Gate;
    const std::uint32_t strip = walk.tile() * (args.outputs_per_tile / kStripRows);
    if (args.codes.row_major) {
      const std::uint32_t column = walk.box() * kBoxColumns;
      if (gate) {
        copy_paired_box(to, &args.weight_map, {column, strip}, full, policy);
      } else {
        copy_box(to, &args.weight_map, {column, strip * kStripRows}, full, policy);
      }
    } else if (gate) {
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
        set_(threadIdx.x / kConsumerThreads),
        warp_(threadIdx.x / 32 % kConsumers),
        lane_(threadIdx.x % 32),
        handover_(args, shared, warp_) {}

  __device__ void run() {
    if constexpr (kSets == 1) {
      handover_.run(
          [this](const Tiles& tiles, float(&sums)[kCount]) { multiply_all(tiles, sums); });
    } else if (set_ == kSets) {
      handover_.finish_tiles();
    } else if (set_ > 0) {
      help();
    } else {
      handover_.send_tiles([this](const Tiles& tiles, float(&sums)[kCount]) {
        multiply(tiles, sums);
        join(sums);
      });
    }
  }

 private:
  using Stage = CodeStage<CodesOf, kTokens>;
  using Ring = boxes::Ring<Stage>;
  using Span = LaneSpan<CodesOf::kKind>;
  static constexpr std::uint32_t kSets = Stage::kSets;
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr int kCount = kTokens / 2;             // sums of a thread
  static constexpr std::uint32_t kGroupSteps = CodesOf::kGroupSteps;
  static constexpr std::uint32_t kStepsAtOnce = kGroupSteps < 4 ? kGroupSteps : 4;
  static constexpr std::uint32_t kSumsAreThere = 2;  // barriers
  static constexpr std::uint32_t kPlaceIsFree = 3;

  // The second set's sums of each tile go to the first.
  __device__ void help() {
    bool waits = false;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance()) {
      Sums<kTokens> sums{};
      multiply(tiles, sums.all);
      if (waits) named_sync<kSets * kConsumerThreads>(kPlaceIsFree);
#pragma unroll
      for (std::uint32_t group = 0; group < kGroups; ++group) *place(group) = sums.of(group);
      named_arrive<kSets * kConsumerThreads>(kSumsAreThere);
      waits = true;
    }
    if (waits) named_sync<kSets * kConsumerThreads>(kPlaceIsFree);
  }

  // One set alone sums in the same order as two.
  __device__ void multiply_all(const Tiles& tiles, float (&sums)[kCount]) {
    load_row_scales(tiles.tile());
    float second[kCount] = {};
    for (std::uint32_t box = 0; box < tiles.num_boxes(); ++box) {
      if (box % 2 == 0) {
        multiply_box(sums);
      } else {
        multiply_box(second);
      }
      at_.advance();
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += second[i];
  }

  __device__ void join(float (&sums)[kCount]) const {
    named_sync<kSets * kConsumerThreads>(kSumsAreThere);
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const float4 part = *place(group);
      sums[group * 4] += part.x;
      sums[group * 4 + 1] += part.y;
      sums[group * 4 + 2] += part.z;
      sums[group * 4 + 3] += part.w;
    }
    named_arrive<kSets * kConsumerThreads>(kPlaceIsFree);
  }

  // Behind those that other blocks write to.
  __device__ float4* place(std::uint32_t group) const {
    return shared_.sums + Stage::kPlaces * Places<kTokens>::kBytes / sizeof(float4) +
           (warp_ * kGroups + group) * 32 + lane_;
  }

  __device__ void multiply(const Tiles& tiles, float (&sums)[kCount]) {
    load_row_scales(tiles.tile());
    for (std::uint32_t box = 0; box < tiles.num_boxes(); ++box) {
      if (box % kSets == set_) multiply_box(sums);
      at_.advance();
    }
  }

  __device__ void multiply_box(float (&sums)[kCount]) const {
    wait_barrier(&shared_.full[at_.stage], at_.parity);
    if constexpr (Stage::kByWarps) {
      multiply_by_warp(at_.stage * Ring::kStageBytes, sums);
    } else {
      // For the compiler: the same in all lanes, so that descriptors need no vector arithmetic.
      multiply_stage(__shfl_sync(~0U, at_.stage, 0), sums);
    }
    __syncwarp();
    if (lane_ == 0) arrive(&shared_.empty[at_.stage]);
  }

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
    const std::uint64_t input =
        advanced(matrix_descriptor(shared_.ring, 0), stage_at + Stage::kWeightBytes);
    Span spans[2];
    spans[0].load(strips, lane_);
    spans[1].load(strips + args_.codes.span_bytes, lane_);
#pragma unroll
    for (std::uint32_t first = 0; first < kSpanSteps; first += kGroupSteps) {
      const Words words = scale_words(strips, first);
      float group[kCount];
      multiply_steps<true>(spans, first, words, input, group);
#pragma unroll
      for (std::uint32_t step = first + kStepsAtOnce; step < first + kGroupSteps;
           step += kStepsAtOnce) {
        multiply_steps<false>(spans, step, words, input, group);
      }
      wgmma_wait<0>();
      hold(group);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scale = scale_of(words.at[i / 2 % 2], args_.codes.offsets);
        sums[i] = fmaf(scale, group[i], sums[i]);
      }
    }
  }

  __device__ void multiply_by_warp(std::uint32_t stage_at, float (&sums)[kCount]) const {
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
      for (std::uint32_t step = first; step < first + kGroupSteps; step += kStepsAtOnce) {
        std::uint32_t a[kStepsAtOnce][4];
        make_elements(spans, step, words, a);
#pragma unroll
        for (std::uint32_t i = 0; i < kStepsAtOnce; i += 2) {
          multiply_two_steps(a[i], a[i + 1], tokens_at(input, step + i), group);
        }
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scale = scale_of(words.at[i / 2 % 2], args_.codes.offsets);
        sums[i] = fmaf(scale, group[i / 4][i % 4], sums[i]);
      }
    }
  }

  // Where a lane reads the columns of two steps of the first eight tokens: in row r of the ring,
  // the 16 bytes numbered c lie at c ^ (r % 8).
  __device__ std::uint32_t tokens_at(std::uint32_t input, std::uint32_t step) const {
    const std::uint32_t row = lane_ % 8;
    return input + step / 4 * Ring::kPartBytes + row * kBoxRowBytes +
           (((step % 4 * 2 + lane_ / 8) ^ row) << 4);
  }

  __device__ static void multiply_two_steps(const std::uint32_t (&a0)[4],
                                            const std::uint32_t (&a1)[4], std::uint32_t tokens,
                                            float (&sums)[kGroups][4]) {
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const Fragments b = load_matrices(tokens + group * 8 * kBoxRowBytes);
      mma_16816<Element>(sums[group], a0, b.at[0], b.at[1]);
      mma_16816<Element>(sums[group], a1, b.at[2], b.at[3]);
    }
  }

  // Starts the products of some steps; the next codes become elements meanwhile. A warpgroup
  // multiplies its 64 rows of W.
  template <bool kFirst>
  __device__ void multiply_steps(const Span (&spans)[2], std::uint32_t first, const Words& words,
                                 std::uint64_t input, float (&sums)[kCount]) const {
    std::uint32_t a[kStepsAtOnce][4];
    make_elements(spans, first, words, a);
    wgmma_fence();
    if constexpr (!kFirst) hold(sums);
#pragma unroll
    for (std::uint32_t i = 0; i < kStepsAtOnce; ++i) {
      const std::uint32_t step = first + i;
      const std::uint64_t b = advanced(input, step / 4 * Ring::kPartBytes + step % 4 * 32);
      if (kFirst && i == 0) {
        wgmma_rows<Element, true>(sums, a[i], b);
      } else {
        wgmma_rows<Element, false>(sums, a[i], b);
      }
    }
    wgmma_commit();
  }

  __device__ void make_elements(const Span (&spans)[2], std::uint32_t first, const Words& words,
                                std::uint32_t (&a)[kStepsAtOnce][4]) const {
#pragma unroll
    for (std::uint32_t i = 0; i < kStepsAtOnce; ++i) {
      spans[0].template pairs<Element>(first + i, a[i][0], a[i][2]);
      spans[1].template pairs<Element>(first + i, a[i][1], a[i][3]);
    }
    if (args_.codes.offsets) shift(words, a);
  }

  __device__ static void shift(const Words& words, std::uint32_t (&a)[kStepsAtOnce][4]) {
    const Pair<Element> by[] = {shift_of<Element>(words.at[0]), shift_of<Element>(words.at[1])};
#pragma unroll
    for (std::uint32_t i = 0; i < kStepsAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[i][j] = shifted<Element>(a[i][j], by[j % 2]);
    }
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t set_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  Handover<Element, Stage, true> handover_;
  RingPosition<Ring::kStages> at_;
  Words row_words_{};
};

#endif  // INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
__global__ void __launch_bounds__(kThreads<CodeStage<CodesOf, kTokens>>, 1)
    code_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  run_block<CodeStage<CodesOf, kTokens>, Consumer<CodesOf, Element, kTokens>>(args);
#endif
}

template <typename CodesOf, typename Element, int kTokens>
constexpr Variant kVariant = {code_rows_kernel<CodesOf, Element, kTokens>,
                              kThreads<CodeStage<CodesOf, kTokens>>,
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
