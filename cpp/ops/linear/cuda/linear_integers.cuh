// Products of few rows with a quantized matrix of whole numbers, by integer tensor cores: each 128
// columns of an input row become bytes with a scale (docs/decisions/inputs-as-bytes.md). So eight
// codes become multiplicands by three instructions, and a group's sum is exact. A block makes bytes
// of its own columns once, when the kernel before is done: they are the same for all of its tiles.
//
// A sum s becomes a float without a conversion, which few lanes do at once: kSumBase is the bits of
// the number 1.5 * 2^23, and kSumBase + s those of that number plus s. From these, s times the
// input's scale is one fused operation, exact but for its rounding, as the scale leaves the last
// two bits of its mantissa to the product with 1.5 * 2^23.
#pragma once

#include <cfloat>

#include "ops/cuda/wgmma_bytes.cuh"
#include "ops/linear/cuda/kept_inputs.cuh"
#include "ops/linear/cuda/linear_code_sets.cuh"

namespace inferno::ops::cuda::codes {

// What goes with 128 bytes of an input row. base: -1.5 * 2^23 * scale.
struct InputScale {
  float scale;
  float base;
};

constexpr int kSumBase = 0x4b400000;
constexpr float kSumBaseValue = 12582912.0F;
constexpr float kMaxInputCode = 127.0F;

// The inputs that a block keeps: tokens times its boxes at most; their bytes, scales and, for
// offsets, the sum of each group of W's columns.
template <typename CodesOf, int kTokens>
struct Kept {
  static constexpr std::uint32_t kMaxBoxes = 512 / kTokens;
  static constexpr std::uint32_t kScalesAt = kMaxBoxes * kTokens * kSpanColumns;
  static constexpr std::uint32_t kSumsAt = kScalesAt + kMaxBoxes * kTokens * sizeof(InputScale);
  static constexpr std::uint32_t kSumsBytes =
      CodesOf::kOffsets ? kMaxBoxes * CodesOf::kGroups * kTokens * sizeof(float) : 0;
  static constexpr std::uint32_t kBytes = kSumsAt + kSumsBytes;
};

template <typename CodesOf, int kTokens>
using IntegersStage = CodeStage<CodesOf, kTokens, Kept<CodesOf, kTokens>::kBytes>;

#ifdef INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
class IntegerProducts {
 public:
  __device__ IntegerProducts(const FewRowsArgs& args, const Shared& shared, std::uint32_t warp)
      : args_(args),
        strip_(opaque(shared.ring + kWarpStrips * warp * args.codes.span_bytes)),
        words_(args, warp),
        kept_(opaque(shared_address(shared.kept))),
        inputs_(matrix_descriptor(shared.kept, 0)) {}

  // Makes bytes of the inputs.
  __device__ void start() const {
    keep_inputs<Element, kMultiplyingThreads<Stage> / 32>(
        args_, [this](const auto& input) { keep(input); });
    fence_async_proxy();
    named_sync<kMultiplyingThreads<Stage>>(kInputsAreThere);
  }

  __device__ void begin(std::uint32_t tile) { words_.begin(tile); }

  // Gives the stage back once its codes are in registers. A warp without rows multiplies, too, as
  // its warpgroup's products are of all four.
  __device__ void multiply(std::uint32_t stage, std::uint32_t box, std::uint64_t* empty,
                           float (&sums)[kTokens / 2]) const {
    std::uint32_t a[kSpanSteps / 2][4];
    Words words[kGroups];
    load(strip_ + stage * Ring::kStageBytes, a, words);
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty);
    const std::uint64_t inputs = advanced(inputs_, box * kTokens * kSpanColumns);
#pragma unroll
    for (std::uint32_t g = 0; g < kGroups; ++g) {
      int products[kCount];
      wgmma_fence();
#pragma unroll
      for (std::uint32_t i = 0; i < kGroupSteps / 2; ++i) {
        const std::uint32_t steps = g * kGroupSteps / 2 + i;
        const std::uint64_t b = advanced(inputs, steps * 32);
        if (i == 0) {
          wgmma_bytes<true>(products, a[steps], b);
        } else {
          wgmma_bytes<false>(products, a[steps], b);
        }
      }
      wgmma_commit();
      wgmma_wait<0>();
      hold(products);
      add(products, box, g, words[g], sums);
    }
  }

 private:
  using Stage = IntegersStage<CodesOf, kTokens>;
  using Ring = boxes::Ring<Stage>;
  using Span = LaneSpan<CodesOf::kKind>;
  using KeptInputs = Kept<CodesOf, kTokens>;
  static constexpr int kCount = kTokens / 2;  // sums of a thread
  static constexpr std::uint32_t kGroups = CodesOf::kGroups;
  static constexpr std::uint32_t kGroupSteps = CodesOf::kGroupSteps;
  static constexpr float kCodeUnit = CodesOf::kKind == WeightKind::Int4 ? 0.0625F : 1.0F;
  static constexpr std::uint32_t kInputsAreThere = 6;  // barrier

  __device__ void load(std::uint32_t strip, std::uint32_t (&a)[kSpanSteps / 2][4],
                       Words (&words)[kGroups]) const {
    const std::uint32_t lane = threadIdx.x % 32;
    Span spans[2];
#pragma unroll
    for (std::uint32_t i = 0; i < 2; ++i) {
      spans[i].load(shared_pointer<const std::byte>(strip + i * args_.codes.span_bytes), lane);
    }
    const auto* scales =
        shared_pointer<const std::uint32_t>(strip + CodesOf::kCodeBytes) + lane / 4;
#pragma unroll
    for (std::uint32_t g = 0; g < kGroups; ++g) words[g] = words_.load(scales, g * kGroupSteps);
#pragma unroll
    for (std::uint32_t i = 0; i < kSpanSteps / 2; ++i) {
      spans[0].bytes(2 * i, a[i][0], a[i][2]);
      spans[1].bytes(2 * i, a[i][1], a[i][3]);
    }
  }

  // Adds a group's products with their scales.
  __device__ void add(const int (&products)[kCount], std::uint32_t box, std::uint32_t group,
                      const Words& words, float (&sums)[kCount]) const {
    const float scales[] = {scale_of(words.at[0], CodesOf::kOffsets),
                            scale_of(words.at[1], CodesOf::kOffsets)};
    const std::uint32_t first = threadIdx.x % 4 * 2;  // of a lane's tokens of eight
    const auto* inputs = shared_pointer<const float4>(kept_ + KeptInputs::kScalesAt +
                                                      (box * kTokens + first) * sizeof(InputScale));
    const auto* offsets = shared_pointer<const float2>(
        kept_ + KeptInputs::kSumsAt + ((box * kGroups + group) * kTokens + first) * sizeof(float));
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 two = inputs[i];  // of 16 bytes: tokens' scales and bases
      const InputScale tokens[] = {{two.x, two.y}, {two.z, two.w}};
      float products_of[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        products_of[j] = fmaf(__int_as_float(products[i + j] + kSumBase), tokens[j % 2].scale,
                              tokens[j % 2].base);
      }
      if constexpr (CodesOf::kOffsets) {
        const float2 both = offsets[i];
        shift(words, both, products_of);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i + j] = fmaf(scales[j / 2], products_of[j], sums[i + j]);
    }
  }

  __device__ static void shift(const Words& words, const float2& inputs, float (&products)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float by = __uint_as_float(words.at[j / 2] << 16);
      products[j] = fmaf(-by, j % 2 == 0 ? inputs.x : inputs.y, products[j]);
    }
  }

  __device__ void keep(const InputOfBox<Element>& input) const {
    const std::uint32_t step = input.step_number();
    const std::uint32_t box = input.box;
    const std::uint32_t token = input.token;
    const float largest = __uint_as_float(input.largest());
    // Finite, as zeros stay zeros beside the smallest of numbers.
    const float inverse = fminf(kMaxInputCode / largest, FLT_MAX);
    const auto code = [inverse](float value) {
      return __float_as_uint(fmaf(value, inverse, kSumBaseValue));  // rounded to the nearest
    };
    // A step's bytes after the other, as its codes come from registers; in the swizzle that wgmma
    // wants.
    const uint4 words = {input.step.word(0, code), input.step.word(1, code),
                         input.step.word(2, code), input.step.word(3, code)};
    *shared_pointer<uint4>(kept_ + (box * kTokens + token) * kSpanColumns +
                           ((step ^ token % 8) << 4)) = words;
    const float unit = __uint_as_float(__float_as_uint(largest / kMaxInputCode) & ~3U);
    if constexpr (CodesOf::kOffsets) keep_sum(words, box, token, unit);
    if (step > 0) return;
    const float scale = unit * kCodeUnit;
    *shared_pointer<InputScale>(kept_ + KeptInputs::kScalesAt +
                                (box * kTokens + token) * sizeof(InputScale)) = {
        scale, -kSumBaseValue * scale};
  }

  __device__ void keep_sum(const uint4& words, std::uint32_t box, std::uint32_t token,
                           float unit) const {
    const std::uint32_t step = threadIdx.x % 8;
    int sum = 0;
    for (const std::uint32_t word : {words.x, words.y, words.z, words.w}) {
      sum = __dp4a(static_cast<int>(word), 0x01010101, sum);
    }
    for (std::uint32_t lane = 1; lane < kGroupSteps; lane *= 2) {
      sum += __shfl_xor_sync(~0U, sum, lane);
    }
    if (step % kGroupSteps != 0) return;
    const std::uint32_t at = (box * kGroups + step / kGroupSteps) * kTokens + token;
    *shared_pointer<float>(kept_ + KeptInputs::kSumsAt + at * sizeof(float)) =
        static_cast<float>(sum) * unit;
  }

  const FewRowsArgs& args_;
  std::uint32_t strip_;  // the warp's first, in the ring's first stage
  ScaleWords<CodesOf> words_;
  std::uint32_t kept_;
  std::uint64_t inputs_;
};

#else
template <typename CodesOf, typename Element, int kTokens>
class IntegerProducts;
#endif  // INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
constexpr Variant kIntegerVariant =
    kVariant<IntegerProducts<CodesOf, Element, kTokens>, Element, IntegersStage<CodesOf, kTokens>,
             Kept<CodesOf, kTokens>::kMaxBoxes>;

template <typename CodesOf, typename Element>
constexpr Variant kIntegerVariants[] = {kIntegerVariant<CodesOf, Element, 8>,
                                        kIntegerVariant<CodesOf, Element, 16>,
                                        kIntegerVariant<CodesOf, Element, 32>};

template <typename CodesOf>
std::span<const Variant> integer_variants(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kIntegerVariants<CodesOf, __nv_bfloat16>)
                              : std::span(kIntegerVariants<CodesOf, __half>);
}

}  // namespace inferno::ops::cuda::codes
