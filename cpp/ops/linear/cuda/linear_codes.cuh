// Products of few rows with a quantized matrix whose codes become elements in registers, with the
// input as it is. Of few tokens a warp multiplies by itself with mma.m16n8k16, which waits for no
// other warp; of more as a warpgroup with wgmma, which reads the tokens once for 64 rows. Both give
// the same bits (linear_codes_test.cc). The products of a group are summed by themselves and their
// sum is scaled in float, so a scale costs no rounding.
#pragma once

#include "ops/linear/cuda/linear_code_sets.cuh"

namespace inferno::ops::cuda::codes {

template <typename CodesOf, int kTokens>
using ElementsStage = CodeStage<CodesOf, kTokens, 0>;

#ifdef INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
class ElementProducts {
 public:
  __device__ ElementProducts(const FewRowsArgs& args, const Shared& shared, std::uint32_t warp)
      : args_(args), shared_(shared), warp_(warp), lane_(threadIdx.x % 32), words_(args, warp) {}

  static constexpr bool kTwoAtOnce = false;

  __device__ void start() const {}
  __device__ void begin(std::uint32_t tile) { words_.begin(tile); }

  __device__ void multiply(std::uint32_t stage, std::uint32_t, std::uint64_t* empty,
                           float (&sums)[kTokens / 2]) const {
    if constexpr (kByWarps) {
      multiply_by_warp(stage * Ring::kStageBytes, sums);
    } else {
      multiply_stage(uniform(stage), sums);
    }
    __syncwarp();
    if (lane_ == 0) arrive(empty);
  }

 private:
  using Stage = ElementsStage<CodesOf, kTokens>;
  using Ring = boxes::Ring<Stage>;
  using Span = LaneSpan<CodesOf::kKind>;
  static constexpr bool kByWarps = kTokens <= 16;
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr int kCount = kTokens / 2;             // sums of a thread
  static constexpr std::uint32_t kGroupSteps = CodesOf::kGroupSteps;
  static constexpr std::uint32_t kStepsAtOnce = kGroupSteps < 4 ? kGroupSteps : 4;

  __device__ void multiply_stage(std::uint32_t stage, float (&sums)[kCount]) const {
    const std::uint32_t stage_at = stage * Ring::kStageBytes;
    const std::byte* strips = shared_.ring_data + stage_at + 2 * warp_ * args_.codes.span_bytes;
    const auto* scales =
        reinterpret_cast<const std::uint32_t*>(strips + CodesOf::kCodeBytes) + lane_ / 4;
    const std::uint64_t input =
        advanced(matrix_descriptor(shared_.ring, 0), stage_at + Stage::kWeightBytes);
    Span spans[2];
    spans[0].load(strips, lane_);
    spans[1].load(strips + args_.codes.span_bytes, lane_);
#pragma unroll
    for (std::uint32_t first = 0; first < kSpanSteps; first += kGroupSteps) {
      const Words words = words_.load(scales, first);
      float group[kCount];
      multiply_steps<true>(spans, first, input, group);
#pragma unroll
      for (std::uint32_t step = first + kStepsAtOnce; step < first + kGroupSteps;
           step += kStepsAtOnce) {
        multiply_steps<false>(spans, step, input, group);
      }
      wgmma_wait<0>();
      hold(group);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scale = scale_of(words.at[i / 2 % 2], CodesOf::kOffsets);
        sums[i] = fmaf(scale, group[i], sums[i]);
      }
    }
  }

  __device__ void multiply_by_warp(std::uint32_t stage_at, float (&sums)[kCount]) const {
    const std::byte* strips = shared_.ring_data + stage_at + 2 * warp_ * args_.codes.span_bytes;
    const auto* scales =
        reinterpret_cast<const std::uint32_t*>(strips + CodesOf::kCodeBytes) + lane_ / 4;
    const std::uint32_t input = shared_.ring + stage_at + Stage::kWeightBytes;
    Span spans[2];
    spans[0].load(strips, lane_);
    spans[1].load(strips + args_.codes.span_bytes, lane_);
#pragma unroll
    for (std::uint32_t first = 0; first < kSpanSteps; first += kGroupSteps) {
      const Words words = words_.load(scales, first);
      float group[kGroups][4] = {};
#pragma unroll
      for (std::uint32_t step = first; step < first + kGroupSteps; step += kStepsAtOnce) {
        std::uint32_t a[kStepsAtOnce][4];
        make_elements(spans, step, a);
#pragma unroll
        for (std::uint32_t i = 0; i < kStepsAtOnce; i += 2) {
          multiply_two_steps(a[i], a[i + 1], tokens_at(input, step + i), group);
        }
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scale = scale_of(words.at[i / 2 % 2], CodesOf::kOffsets);
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
  __device__ void multiply_steps(const Span (&spans)[2], std::uint32_t first, std::uint64_t input,
                                 float (&sums)[kCount]) const {
    std::uint32_t a[kStepsAtOnce][4];
    make_elements(spans, first, a);
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

  __device__ void make_elements(const Span (&spans)[2], std::uint32_t first,
                                std::uint32_t (&a)[kStepsAtOnce][4]) const {
#pragma unroll
    for (std::uint32_t i = 0; i < kStepsAtOnce; ++i) {
      spans[0].template pairs<Element>(first + i, a[i][0], a[i][2]);
      spans[1].template pairs<Element>(first + i, a[i][1], a[i][3]);
    }
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  ScaleWords<CodesOf> words_;
};

#else
template <typename CodesOf, typename Element, int kTokens>
class ElementProducts;
#endif  // INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
constexpr Variant kElementVariant =
    kVariant<ElementProducts<CodesOf, Element, kTokens>, Element, ElementsStage<CodesOf, kTokens>>;

// The last takes kCallRows.
template <typename CodesOf, typename Element>
constexpr Variant kElementVariants[] = {
    kElementVariant<CodesOf, Element, 8>, kElementVariant<CodesOf, Element, 16>,
    kElementVariant<CodesOf, Element, 32>, kElementVariant<CodesOf, Element, 64>};

template <typename CodesOf>
std::span<const Variant> element_variants(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kElementVariants<CodesOf, __nv_bfloat16>)
                              : std::span(kElementVariants<CodesOf, __half>);
}

}  // namespace inferno::ops::cuda::codes
