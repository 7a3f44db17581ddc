// A block's columns of the input, which some kernels of linear_code_sets.cuh keep as codes: they
// are the same for all of its tiles, and read once, when the kernel before is done.
#pragma once

#include "ops/linear/cuda/input_codes.cuh"
#include "ops/linear/cuda/linear_boxes.cuh"

namespace inferno::ops::cuda::codes {

using namespace boxes;

#ifdef INFERNO_SM90A

// A step of a token's columns of a box: eight neighbouring lanes have them all.
template <typename Element>
struct InputOfBox {
  std::uint32_t box;  // of the block's
  std::uint32_t token;
  InputStep<Element> step;

  __device__ static std::uint32_t step_number() { return threadIdx.x % 8; }

  // Zeros where there is no such token.
  __device__ void load(const FewRowsArgs& args, const Tiles& tiles) {
    step = {};
    if (box >= tiles.num_boxes() || token >= args.epilogue.num_tokens) return;
    const auto* row =
        static_cast<const Element*>(args.input) + std::size_t{token} * args.num_columns;
    const std::uint32_t column = (tiles.first_box() + box) * kSpanColumns;
    step.load(row, column + step_number() * kStepColumns, args.num_columns);
  }

  // Of all eight.
  __device__ std::uint32_t largest() const {
    std::uint32_t most = step.largest();
    for (int lane = 4; lane > 0; lane /= 2) most = max(most, __shfl_xor_sync(~0U, most, lane));
    return most;
  }
};

// By kWarps warps: calls keep(input) for all tokens and boxes, the loads of four under way
// together.
template <typename Element, std::uint32_t kWarps, typename Keep>
__device__ __forceinline__ void keep_inputs(const FewRowsArgs& args, const Keep& keep) {
  constexpr std::uint32_t kAtOnce = 4;
  const Tiles tiles(args);
  const std::uint32_t fours = (args.epilogue.num_tokens + 3) / 4;
  for (std::uint32_t i = threadIdx.x / 32; i < tiles.num_boxes() * fours; i += kAtOnce * kWarps) {
    InputOfBox<Element> inputs[kAtOnce];
#pragma unroll
    for (std::uint32_t j = 0; j < kAtOnce; ++j) {
      const std::uint32_t at = i + j * kWarps;
      inputs[j].box = at / fours;
      inputs[j].token = at % fours * 4 + threadIdx.x % 32 / 8;
      inputs[j].load(args, tiles);
    }
#pragma unroll
    for (const auto& input : inputs) {
      if (input.box < tiles.num_boxes()) keep(input);
    }
  }
}

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::codes
