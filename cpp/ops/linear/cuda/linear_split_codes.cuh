// Products of few rows with codes of e4m3 of which each row has one scale, by the tensor cores for
// such codes, which read W where it came in the ring: nothing is made of a weight. An input is the
// sum of two codes (docs/decisions/inputs-as-two-codes.md): the nearest one, and of what it leaves,
// sixteen times as large, another one. With the power of two that makes the largest of 128 columns
// one of [128, 256), that is each number of bf16 down to 2^-14 of the largest, exactly. The two are
// columns of one product, side by side, so that a thread has the sums of both.
#pragma once

#include "ops/cuda/e4m3.cuh"
#include "ops/cuda/wgmma_codes.cuh"
#include "ops/linear/cuda/kept_inputs.cuh"
#include "ops/linear/cuda/linear_code_sets.cuh"

namespace inferno::ops::cuda::codes {

constexpr float kLowerFactor = 16.0F;  // of the second code

// The inputs that a block keeps: of so many boxes, each with two rows of codes for a token; and
// what a token's sums of a box are multiplied by.
template <int kTokens, std::uint32_t kBoxes>
struct SplitInputs {
  static constexpr std::uint32_t kMaxBoxes = kBoxes;
  static constexpr std::uint32_t kBoxBytes = 2 * kTokens * kSpanColumns;
  static constexpr std::uint32_t kScalesAt = kMaxBoxes * kBoxBytes;
  static constexpr std::uint32_t kBytes = kScalesAt + kMaxBoxes * kTokens * sizeof(float);
};

using RowCodes = Codes<WeightKind::Fp8, kSpanSteps>;

// Where inputs leave little room, the warps that multiply finish tiles, too, which takes fewer
// places for sums.
template <int kTokens, std::uint32_t kBoxes>
struct SplitStage : CodeStage<RowCodes, kTokens, SplitInputs<kTokens, kBoxes>::kBytes, 1> {
  static constexpr bool kCrowded = kTokens * kBoxes > 256;
  static constexpr std::uint32_t kFinishers = kCrowded ? 0 : kTokens / 8;
  static constexpr std::uint32_t kPlaces = kCrowded ? 2 : 4;
};

#ifdef INFERNO_SM90A

template <typename Element, int kTokens, std::uint32_t kBoxes>
class SplitProducts {
 public:
  static constexpr bool kTwoAtOnce = true;
  using OfBox = float[kTokens];

  __device__ SplitProducts(const FewRowsArgs& args, const Shared& shared, std::uint32_t warp)
      : args_(args),
        weights_(advanced(matrix_descriptor(shared.ring, 0),
                          uniform(warp / 4) * kGroupRows * kBoxRowBytes)),
        words_(args, warp),
        kept_(opaque(shared_address(shared.kept))),
        inputs_(matrix_descriptor(shared.kept, 0)) {}

  __device__ void start() const {
    keep_inputs<Element, kConsumers>(args_, [this](const auto& input) { keep(input); });
    fence_async_proxy();
    named_sync<kConsumerThreads>(kInputsAreThere);
  }

  __device__ void begin(std::uint32_t tile) { words_.begin(tile); }

  __device__ void multiply(std::uint32_t stage, std::uint32_t box, std::uint64_t* empty,
                           float (&sums)[kTokens / 2]) const {
    OfBox products;
    begin_box(stage, box, products);
    wgmma_wait<0>();
    end_box(products, box, empty, sums);
  }

  // A warpgroup multiplies 64 rows, of which nobody uses those that a tile lacks.
  __device__ void begin_box(std::uint32_t stage, std::uint32_t box, OfBox& products) const {
    const std::uint64_t a = advanced(weights_, uniform(stage) * Ring::kStageBytes);
    const std::uint64_t b = advanced(inputs_, uniform(box) * Kept::kBoxBytes);
    wgmma_fence();
    wgmma_codes<true>(products, a, b);
#pragma unroll
    for (std::uint32_t at = 32; at < kSpanColumns; at += 32) {
      wgmma_codes<false>(products, advanced(a, at), advanced(b, at));
    }
    wgmma_commit();
  }

  __device__ void end_box(OfBox& products, std::uint32_t box, std::uint64_t* empty,
                          float (&sums)[kTokens / 2]) const {
    hold(products);
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty);
    add(products, box, sums);
  }

 private:
  using Stage = SplitStage<kTokens, kBoxes>;
  using Ring = boxes::Ring<Stage>;
  using Kept = SplitInputs<kTokens, kBoxes>;
  static constexpr std::uint32_t kGroupRows = 64;      // of a warpgroup's products
  static constexpr std::uint32_t kInputsAreThere = 6;  // barrier

  __device__ std::uint32_t scale_at(std::uint32_t box, std::uint32_t token) const {
    return kept_ + Kept::kScalesAt + (box * kTokens + token) * sizeof(float);
  }

  // Of eight tokens, a thread has both sums of token 2 (lane % 4) in the first eight columns, of
  // the next token in the others.
  __device__ void add(const float (&products)[kTokens], std::uint32_t box,
                      float (&sums)[kTokens / 2]) const {
    const Words words = words_.load(nullptr, 0);
#pragma unroll
    for (int group = 0; group < kTokens / 8; ++group) {
      const float2 scales =
          *shared_pointer<const float2>(scale_at(box, group * 8 + threadIdx.x % 4 * 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // as Sums has them
        const int at = group * 8 + i % 2 * 4 + i / 2 * 2;
        const float product = fmaf(products[at + 1], 1.0F / kLowerFactor, products[at]);
        const float scale = i % 2 == 0 ? scales.x : scales.y;
        sums[group * 4 + i] =
            fmaf(scale_of(words.at[i / 2], false), scale * product, sums[group * 4 + i]);
      }
    }
  }

  __device__ void keep(const InputOfBox<Element>& input) const {
    const std::uint32_t most = input.largest();
    // Exponents as they are stored. A largest input that is no number makes the sums none.
    const std::uint32_t exponent = max(most >> 23, kLeastExponent);
    const float factor = __uint_as_float((kFactorExponent - exponent) << 23);
    const bool finite = most >> 23 < 255;
    if (input.step_number() == 0) {
      *shared_pointer<float>(scale_at(input.box, input.token)) =
          finite ? __uint_as_float((exponent - kLeastExponent + 1) << 23) : __uint_as_float(most);
    }
    std::uint32_t upper[4];
    std::uint32_t lower[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const TwoCodes first = codes_of(input.step.pair(2 * lane), factor);
      const TwoCodes second = codes_of(input.step.pair(2 * lane + 1), factor);
      upper[lane] = first.upper | second.upper << 16;
      lower[lane] = first.lower | second.lower << 16;
    }
    store(input, 0, upper);
    store(input, 1, lower);
  }

  // The largest becomes one of [128, 256), whose exponent is 7 more than that of one.
  static constexpr std::uint32_t kLeastExponent = 8;
  static constexpr std::uint32_t kFactorExponent = 127 + 127 + 7;

  // Of two inputs: their nearest codes, and those of what these leave.
  struct TwoCodes {
    std::uint32_t upper;
    std::uint32_t lower;
  };
  __device__ static TwoCodes codes_of(float2 inputs, float factor) {
    inputs.x *= factor;
    inputs.y *= factor;
    const std::uint16_t upper = nearest_codes(inputs.x, inputs.y);
    const float2 values = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(upper, __NV_E4M3)));
    return {upper, nearest_codes((inputs.x - values.x) * kLowerFactor,
                                 (inputs.y - values.y) * kLowerFactor)};
  }

  // Four neighbours have the four steps of a lane's 16 bytes (code_layout.h).
  __device__ void store(const InputOfBox<Element>& input, std::uint32_t part,
                        std::uint32_t (&words)[4]) const {
    transpose(words);
    const std::uint32_t t = input.token % 8;
    const std::uint32_t row = t % 2 * 8 + t / 2 * 2 + part;  // of those of eight tokens
    const std::uint32_t chunk = input.step_number() ^ row % 8;
    *shared_pointer<uint4>(kept_ + input.box * Kept::kBoxBytes +
                           (input.token / 8 * 16 + row) * kSpanColumns +
                           chunk * 16) = {words[0], words[1], words[2], words[3]};
  }

  const FewRowsArgs& args_;
  std::uint64_t weights_;
  ScaleWords<RowCodes> words_;
  std::uint32_t kept_;
  std::uint64_t inputs_;
};

#else
template <typename Element, int kTokens, std::uint32_t kBoxes>
class SplitProducts;
#endif  // INFERNO_SM90A

template <typename Element, int kTokens, std::uint32_t kBoxes>
constexpr Variant kSplitVariant =
    kVariant<SplitProducts<Element, kTokens, kBoxes>, Element, SplitStage<kTokens, kBoxes>, kBoxes>;

}  // namespace inferno::ops::cuda::codes
