// Products of some dozen to some hundred rows with a quantized matrix. Codes become elements in
// registers, scaled, the first factor of wgmma; so a weight is converted once for all tokens of a
// tile, and nothing is left for the end of a group.
//
// A cluster computes a tile of up to 256 rows of W for up to 128 tokens, each of its blocks a share
// of the columns. Up to four warpgroups have 64 rows each: while one converts, the others' products
// are under way. One thread streams W and the input through a ring. At the end the sums of a warp's
// rows and eight tokens ("a unit") go to the blocks by turns, which add them in the order of the
// columns and finish them.
#pragma once

#include "ops/linear/cuda/linear_code_sets.cuh"
#include "ops/linear/cuda/linear_code_tile_sums.cuh"

namespace inferno::ops::cuda::code_tiles {

using namespace codes;

constexpr std::uint32_t kMaxWarps = 16;  // that multiply
constexpr std::uint32_t kMaxStrips = kMaxWarps * kWarpStrips;
constexpr std::uint32_t kProducerThreads = 128;  // a warpgroup, so that it can give back registers
constexpr std::uint32_t kMaxThreads = kMaxWarps * 32 + kProducerThreads;

template <typename CodesOf, int kTokens>
struct TileRing {
  static constexpr std::uint32_t kPartBytes = kTokens * kBoxRowBytes;  // of 64 columns
  static constexpr std::uint32_t kParts = kSpanColumns / kBoxColumns;
  static constexpr std::uint32_t kInputBytes = kParts * kPartBytes;
  static constexpr std::uint32_t kWeightBytes =
      (kMaxStrips * CodesOf::kMaxSpanBytes + kSwizzleAlignment - 1) / kSwizzleAlignment *
      kSwizzleAlignment;
  static constexpr std::uint32_t kStageBytes = kWeightBytes + kInputBytes;
  static constexpr std::uint32_t kStages = kRingAndSumsBytes / kStageBytes;
  static constexpr std::uint32_t kSharedBytes = kStages * kStageBytes + kSwizzleAlignment;
  // The ring's memory is the place for the sums when its last stage has been read.
  static_assert(kMaxWarps * 16 * kTokens * sizeof(float) <= kStages * kStageBytes);
  static_assert(kStages > 1);
};

// A block starts with 96 for each thread.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 112;

#ifdef INFERNO_SM90A

template <typename CodesOf, int kTokens>
class TileProducer {
 public:
  __device__ TileProducer(const FewRowsArgs& args, const TileShared& shared)
      : args_(args), shared_(shared), policy_(evict_first_policy()), keep_(evict_last_policy()) {}

  // By one thread.
  __device__ void run() const {
    Share weights(args_, kTokens);
    Share inputs = weights;
    const std::uint32_t ahead = min(weights.num_boxes(), Ring::kStages);
    for (std::uint32_t i = 0; i < ahead; ++i, weights.advance()) copy_weights(i, weights);
    wait_for_previous();
    for (std::uint32_t i = 0; i < ahead; ++i, inputs.advance()) copy_input(i, inputs);
    RingPosition<Ring::kStages> at;
    for (; weights.num_boxes() > 0; weights.advance()) {
      wait_barrier(&shared_.empty[at.stage], at.parity);
      copy_weights(at.stage, weights);
      copy_input(at.stage, weights);
      at.advance();
    }
  }

 private:
  using Ring = TileRing<CodesOf, kTokens>;

  __device__ void copy_weights(std::uint32_t stage, const Share& share) const {
    const std::uint32_t strip_bytes =
        args_.codes.row_major ? kStripRows * kSpanColumns : args_.codes.span_bytes;
    std::uint64_t* full = &shared_.full[stage];
    arrive_expecting(full, args_.warps_per_tile * kWarpStrips * strip_bytes + Ring::kInputBytes);
    copy_code_box(args_, share, shared_.ring + stage * Ring::kStageBytes, full, policy_);
  }

  __device__ void copy_input(std::uint32_t stage, const Share& share) const {
    const std::uint32_t to = shared_.ring + stage * Ring::kStageBytes + Ring::kWeightBytes;
#pragma unroll
    for (std::uint32_t part = 0; part < Ring::kParts; ++part) {
      const std::uint32_t column = share.box() * kSpanColumns + part * kBoxColumns;
      copy_box(to + part * Ring::kPartBytes, &args_.input_map, {column, share.first_token()},
               &shared_.full[stage], keep_);
    }
  }

  const FewRowsArgs& args_;
  const TileShared& shared_;
  std::uint64_t policy_;
  std::uint64_t keep_;
};

template <typename CodesOf, typename Element, int kTokens>
class TileConsumer {
 public:
  __device__ TileConsumer(const FewRowsArgs& args, const TileShared& shared)
      : args_(args),
        shared_(shared),
        share_(args, kTokens),
        warp_(uniform(threadIdx.x / 32)),
        lane_(threadIdx.x % 32),
        words_(args, warp_) {}

  __device__ void run() {
    const TileSums<Element, kTokens> end(args_, shared_, share_, warp_);
    words_.begin(share_.tile());
    end.load_scales();
    float sums[kCount] = {};
    multiply(sums);
    if (args_.codes.row_scales != nullptr) scale_rows(sums);
    end.run(sums);
  }

 private:
  using Ring = TileRing<CodesOf, kTokens>;
  using Span = LaneSpan<CodesOf::kKind>;
  static constexpr int kCount = kTokens / 2;  // sums of a thread
  static constexpr std::uint32_t kStepsAtOnce = kTokens <= 64 ? 4 : 2;

  __device__ void multiply(float (&sums)[kCount]) const {
    RingPosition<Ring::kStages> at;
    std::uint32_t before = 0;
    const std::uint32_t end = uniform(share_.num_boxes());
    for (std::uint32_t box = 0; box < end; ++box) {
      wait_barrier(&shared_.full[at.stage], at.parity);
      const std::uint32_t stage_at = uniform(at.stage) * Ring::kStageBytes;
      const std::byte* strips =
          shared_.ring_data + stage_at + warp_ * kWarpStrips * args_.codes.span_bytes;
      const std::uint64_t input =
          advanced(matrix_descriptor(shared_.ring, 0), stage_at + Ring::kWeightBytes);
      Span spans[2];
      spans[0].load(strips, lane_);
      spans[1].load(strips + args_.codes.span_bytes, lane_);
#pragma unroll
      for (std::uint32_t step = 0; step < kSpanSteps; step += kStepsAtOnce) {
        multiply_steps(spans, strips, step, input, sums);
        wgmma_wait<1>();
        // The products of the stage before are done.
        if (step == 0 && box > 0) give_back(before);
      }
      before = at.stage;
      at.advance();
    }
    wgmma_wait<0>();
    hold(sums);
  }

  __device__ void multiply_steps(const Span (&spans)[2], const std::byte* strips,
                                 std::uint32_t first, std::uint64_t input,
                                 float (&sums)[kCount]) const {
    std::uint32_t a[kStepsAtOnce][4];
    const auto* scales =
        reinterpret_cast<const std::uint32_t*>(strips + CodesOf::kCodeBytes) + lane_ / 4;
    constexpr std::uint32_t kSame =
        CodesOf::kGroupSteps < kStepsAtOnce ? CodesOf::kGroupSteps : kStepsAtOnce;
#pragma unroll
    for (std::uint32_t step = 0; step < kStepsAtOnce; step += kSame) {
      const Words words = words_.load(scales, first + step);
#pragma unroll
      for (std::uint32_t i = step; i < step + kSame; ++i) {
        spans[0].template pairs<Element>(first + i, a[i][0], a[i][2]);
        spans[1].template pairs<Element>(first + i, a[i][1], a[i][3]);
#pragma unroll
        for (std::uint32_t j = 0; j < 4; ++j) a[i][j] = scaled(a[i][j], words.at[j % 2]);
      }
    }
    wgmma_fence();
    hold(sums);
#pragma unroll
    for (std::uint32_t i = 0; i < kStepsAtOnce; ++i) {
      const std::uint32_t step = first + i;
      wgmma_rows<Element, false>(sums, a[i],
                                 advanced(input, step / 4 * Ring::kPartBytes + step % 4 * 32));
    }
    wgmma_commit();
  }

  // Where a row has one scale, its sums are multiplied by it.
  __device__ std::uint32_t scaled(std::uint32_t pair, std::uint32_t word) const {
    if constexpr (CodesOf::kOffsets) pair = shifted<Element>(pair, shift_of<Element>(word));
    const float scale =
        args_.codes.row_scales != nullptr ? 1.0F : scale_of(word, CodesOf::kOffsets);
    Pair<Element> both;
    both.x = both.y = from_float<Element>(scale * kWeightFactor<Element>);
    return bits_of<Element>(__hmul2(as_pair<Element>(pair), both));
  }

  __device__ void scale_rows(float (&sums)[kCount]) const {
    const Words words = words_.load(nullptr, 0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] *= scale_of(words.at[i / 2 % 2], CodesOf::kOffsets);
  }

  __device__ void give_back(std::uint32_t stage) const {
    __syncwarp();
    if (lane_ == 0) arrive(&shared_.empty[stage]);
  }

  const FewRowsArgs& args_;
  const TileShared& shared_;
  Share share_;
  std::uint32_t warp_;
  std::uint32_t lane_;
  ScaleWords<CodesOf> words_;
};

#endif  // INFERNO_SM90A

template <typename CodesOf, typename Element, int kTokens>
__global__ void __launch_bounds__(kMaxThreads, 1)
    code_tiles_kernel(const __grid_constant__ FewRowsArgs args) {
#ifdef INFERNO_SM90A
  extern __shared__ unsigned char dynamic[];
  using Ring = TileRing<CodesOf, kTokens>;
  __shared__ std::uint64_t full[Ring::kStages];
  __shared__ std::uint64_t empty[Ring::kStages];
  __shared__ std::uint64_t handed;
  __shared__ float scale[kTokens];
  const std::uint32_t base = shared_address(dynamic);
  const std::uint32_t ring = (base + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const TileShared shared{
      full, empty, &handed, ring, reinterpret_cast<std::byte*>(dynamic) + (ring - base), scale};
  const std::uint32_t consumer_threads = args.warps_per_tile * 32;
  const bool produces = threadIdx.x == consumer_threads;
  if (produces) {
    for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], args.warps_per_tile);
    }
    init_barrier(&handed, 1);
    arrive_expecting(&handed, handed_bytes<kTokens>(args));
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= consumer_threads) {
    give_registers<kProducerRegisters>();
    if (produces) TileProducer<CodesOf, kTokens>(args, shared).run();
    return;
  }
  take_registers<kConsumerRegisters>();
  let_next_start();
  wait_for_previous();
  TileConsumer<CodesOf, Element, kTokens>(args, shared).run();
#endif
}

template <typename CodesOf, typename Element, int kTokens>
constexpr Variant kTileVariant = {code_tiles_kernel<CodesOf, Element, kTokens>, kMaxThreads,
                                  TileRing<CodesOf, kTokens>::kSharedBytes, kTokens};

template <typename CodesOf, typename Element>
constexpr Variant kTileVariants[] = {kTileVariant<CodesOf, Element, 64>,
                                     kTileVariant<CodesOf, Element, 128>};

template <typename CodesOf>
std::span<const Variant> tile_variants(Dtype dtype) {
  return dtype == Dtype::BF16 ? std::span(kTileVariants<CodesOf, __nv_bfloat16>)
                              : std::span(kTileVariants<CodesOf, __half>);
}

// Of a format that has_code_layout, for activations of `dtype`: growing. Each kind of codes is a
// file.
std::span<const Variant> fp8_tiles(Dtype dtype);
std::span<const Variant> int8_tiles(Dtype dtype, bool offsets);
std::span<const Variant> int4_tiles(Dtype dtype);
std::span<const Variant> int4_offset_tiles(Dtype dtype);
std::span<const Variant> int4_small_group_tiles(Dtype dtype, bool offsets);  // than a span
std::span<const Variant> mxfp4_tiles(Dtype dtype);

}  // namespace inferno::ops::cuda::code_tiles
