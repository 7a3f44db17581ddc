// What a block of linear_code_tiles.cuh computes, and what becomes of its sums.
#pragma once

#include "ops/linear/cuda/linear_boxes.cuh"

namespace inferno::ops::cuda::code_tiles {

using namespace boxes;

// Weights are so many times what they are while they are multiplied: scales of f16 then keep their
// bits down to 1e-6. A weight may be 1,023.
template <typename Element>
constexpr float kWeightFactor = std::is_same_v<Element, __half> ? 64.0F : 1.0F;

#ifdef INFERNO_SM90A

__device__ __forceinline__ std::uint32_t cluster_size() {
  std::uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// What a block computes: of a tile of W and one of tokens, a run of boxes.
class Share {
 public:
  __device__ Share(const FewRowsArgs& args, std::uint32_t tokens_of_tile) {
    const std::uint32_t size = cluster_size();
    const std::uint32_t rank = cluster_rank();
    const std::uint32_t token_tiles =
        (args.epilogue.num_tokens + tokens_of_tile - 1) / tokens_of_tile;
    const std::uint32_t cluster = blockIdx.x / size;
    tile_ = cluster / token_tiles;
    first_token_ = cluster % token_tiles * tokens_of_tile;
    box_ = args.boxes_per_tile * rank / size;
    end_box_ = args.boxes_per_tile * (rank + 1) / size;
  }
  __device__ std::uint32_t tile() const { return tile_; }
  __device__ std::uint32_t first_token() const { return first_token_; }
  __device__ std::uint32_t box() const { return box_; }
  __device__ std::uint32_t num_boxes() const { return end_box_ - box_; }
  __device__ void advance() { ++box_; }

 private:
  std::uint32_t tile_;
  std::uint32_t first_token_;
  std::uint32_t box_;
  std::uint32_t end_box_;
};

struct TileShared {
  std::uint64_t* full;    // [kStages] weights and input have come
  std::uint64_t* empty;   // [kStages] all warps have read them
  std::uint64_t* handed;  // the sums of all blocks have come
  std::uint32_t ring;     // address
  std::byte* ring_data;
  float* scale;  // [kTokens] of a token's row
};

// Units that this block finishes, times what comes of each.
template <int kTokens>
__device__ __forceinline__ std::uint32_t handed_bytes(const FewRowsArgs& args) {
  const std::uint32_t size = cluster_size();
  const std::uint32_t units = args.warps_per_tile * (kTokens / 8);
  return (units - cluster_rank() + size - 1) / size * size * 32 * sizeof(float4);
}

// Hands over a tile's sums and finishes those that this block gets, by all warps that multiply.
// Units are eight tokens of a warp's rows; the blocks of a cluster have them by turns.
template <typename Element, int kTokens>
class TileSums {
 public:
  static constexpr int kCount = kTokens / 2;  // sums of a thread

  __device__ TileSums(const FewRowsArgs& args, const TileShared& shared, const Share& share,
                      std::uint32_t warp)
      : args_(args), shared_(shared), share_(share), warp_(warp), lane_(threadIdx.x % 32) {}

  // Of a token's row, before the tile's end.
  __device__ void load_scales() const {
    for (std::uint32_t t = warp_; t < kTokens; t += args_.warps_per_tile) {
      const float scale = row_scale<true>(args_.epilogue, share_.first_token() + t);
      if (lane_ == 0) shared_.scale[t] = scale * (1.0F / kWeightFactor<Element>);
    }
  }

  __device__ void run(const float (&sums)[kCount]) const {
    sync_all();  // nobody reads a ring any more
    hand_over(sums);
    finish_own();
  }

 private:
  static constexpr std::uint32_t kGroups = kTokens / 8;  // of tokens
  static constexpr std::uint32_t kUnitBytes = 32 * sizeof(float4);

  // Waits for all warps of the cluster that multiply. A block alone is not launched as a cluster,
  // and has none of a cluster's instructions.
  __device__ void sync_all() const {
    if (cluster_size() > 1) {
      arrive_at_cluster();
      wait_for_cluster();
    } else {
      asm volatile("bar.sync 1, %0;" ::"r"(args_.warps_per_tile * 32) : "memory");
    }
  }

  __device__ static float4 four_of(const float (&sums)[kCount], std::uint32_t group) {
    return {sums[4 * group], sums[4 * group + 1], sums[4 * group + 2], sums[4 * group + 3]};
  }

  __device__ void hand_over(const float (&sums)[kCount]) const {
    const std::uint32_t size = cluster_size();
    const std::uint32_t rank = cluster_rank();
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      const std::uint32_t unit = warp_ * kGroups + group;
      if (size == 1) {
        *shared_pointer<float4>(place(unit, 0, 1)) = four_of(sums, group);
      } else {
        const std::uint32_t owner = unit % size;
        send(address_in(owner, place(unit / size, rank, size)), four_of(sums, group),
             address_in(owner, shared_address(shared_.handed)));
      }
    }
  }

  // Of a block's nth unit, this lane's sums from block `from`.
  __device__ std::uint32_t place(std::uint32_t nth, std::uint32_t from, std::uint32_t size) const {
    return shared_.ring + (nth * size + from) * kUnitBytes + lane_ * sizeof(float4);
  }

  // What a thread knows of a unit before its sums are there.
  struct Unit {
    bool exists;
    std::uint32_t output;  // the first of two, 8 apart, or of Gate the only one
    std::uint32_t token;   // the first of two, of the tile
    float before[4];       // of Add: x
    OutputConstants constants[2];
  };

  __device__ Unit load_unit(std::uint32_t number) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    const std::uint32_t warp = number / kGroups;
    Unit unit{warp < args_.warps_per_tile, first_output(args_, share_.tile(), warp) + lane_ / 4,
              number % kGroups * 8 + lane_ % 4 * 2};
    if (!unit.exists || epilogue.kind == Epilogue::Gate) return unit;
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t token = share_.first_token() + unit.token + i % 2;
      const std::uint32_t output = unit.output + i / 2 * 8;
      const bool adds = epilogue.kind == Epilogue::Add && exists(token, output);
      unit.before[i] = adds ? load_output(epilogue, token, output) : 0.0F;
    }
    unit.constants[0] = constants_of<true>(epilogue, unit.output);
    unit.constants[1] = constants_of<true>(epilogue, unit.output + 8);
    return unit;
  }

  // One piece of code for all units: it runs once a tile and has to be fetched first. What the
  // outputs were is loaded two units ahead.
  __device__ void finish_own() const {
    const std::uint32_t size = cluster_size();
    const std::uint32_t rank = cluster_rank();
    const std::uint32_t step = args_.warps_per_tile;
    Unit unit = load_unit(warp_ * size + rank);
    Unit next = load_unit((warp_ + step) * size + rank);
    if (size == 1) {
      sync_all();
    } else {
      wait_barrier(shared_.handed, 0);
    }
#pragma unroll 1
    for (std::uint32_t nth = warp_; unit.exists; nth += step) {
      const Unit after = load_unit((nth + 2 * step) * size + rank);
      finish(unit, handed(nth, size));
      unit = next;
      next = after;
    }
  }

  __device__ float4 handed(std::uint32_t nth, std::uint32_t size) const {
    float4 sums{};
#pragma unroll 1
    for (std::uint32_t from = 0; from < size; ++from) {
      const float4 part = *shared_pointer<const float4>(place(nth, from, size));
      sums.x += part.x;
      sums.y += part.y;
      sums.z += part.z;
      sums.w += part.w;
    }
    return sums;
  }

  __device__ void finish(const Unit& unit, const float4& four) const {
    const float first = shared_.scale[unit.token];
    const float second = shared_.scale[unit.token + 1];
    const float sums[] = {four.x * first, four.y * second, four.z * first, four.w * second};
    if (args_.epilogue.kind == Epilogue::Gate) {
      finish_pairs(unit, sums);
    } else {
      finish_sums(unit, sums);
    }
  }

  __device__ void finish_pairs(const Unit& unit, const float (&sums)[4]) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    if (unit.output >= epilogue.num_outputs) return;
    const float gate_bias = bias_of<true>(epilogue, unit.output);
    const float up_bias = bias_of<true>(epilogue, epilogue.num_outputs + unit.output);
#pragma unroll
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t token = share_.first_token() + unit.token + i;
      if (token >= epilogue.num_tokens) continue;
      finish_gated<Element, true>(epilogue, token, unit.output, sums[i] + gate_bias,
                                  sums[i + 2] + up_bias);
    }
  }

  __device__ void finish_sums(const Unit& unit, const float (&sums)[4]) const {
    const std::uint32_t first_token = share_.first_token() + unit.token;
    float squares[2] = {};
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t output = unit.output + i / 2 * 8;
      const std::uint32_t token = first_token + i % 2;
      if (!exists(token, output)) continue;
      const OutputConstants& constants = unit.constants[i / 2];
      squares[i % 2] +=
          finish_output<Element>(args_.epilogue, token, output,
                                 unit.before[i] + sums[i] + constants.bias, constants.next_weight);
    }
    if (args_.next_square_sums == nullptr) return;
    store_squares(unit.output, first_token, squares[0]);
    store_squares(unit.output, first_token + 1, squares[1]);
  }

  __device__ bool exists(std::uint32_t token, std::uint32_t output) const {
    return token < args_.epilogue.num_tokens && output < args_.epilogue.num_outputs;
  }

  // The unit's outputs make one partial sum; lanes of equal lane % 4 have the same token.
  __device__ void store_squares(std::uint32_t first, std::uint32_t token, float squares) const {
    static_assert(kWarpRows == kNormPartRows);
    for (int lane = 4; lane < 32; lane *= 2) squares += __shfl_xor_sync(~0U, squares, lane);
    const std::uint32_t part = first / kNormPartRows;
    if (lane_ >= 4 || token >= args_.epilogue.num_tokens || part >= args_.num_next_sums) return;
    args_.next_square_sums[std::size_t{token} * args_.num_next_sums + part] = squares;
  }

  const FewRowsArgs& args_;
  const TileShared& shared_;
  const Share& share_;
  std::uint32_t warp_;
  std::uint32_t lane_;
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::code_tiles
