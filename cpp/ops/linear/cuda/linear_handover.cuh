// What becomes of a tile's sums in the kernels of linear_boxes.cuh: every warp hands its own to one
// of the cluster's blocks, through distributed shared memory. The sums of all warps number r meet
// in block r, which adds them in the order of the columns and finishes these 16 outputs. It does so
// after its products for the next tile, so that nobody waits for sums on their way but at the end.
//
// Sums have places in turn. Where the same warps multiply and finish, two: one is free again when
// its block has finished a tile, before it hands over the next; so who has all sums of that next
// tile may write there. Where other warps finish, four: a block hands over a tile when it has
// finished the one two before, of which it then had all sums; so all blocks had finished the tile
// four before.
#pragma once

#include "ops/linear/cuda/linear_boxes.cuh"

namespace inferno::ops::cuda::boxes {

#ifdef INFERNO_SM90A

// A thread's sums of a tile, four of each group of 8 tokens: output r of tokens t and t + 1, output
// r + 8 of the same; of Gate, gate and up of output r.
template <int kTokens>
struct Sums {
  static constexpr std::uint32_t kGroups = kTokens / 8;
  float all[kGroups * 4];
  __device__ float4 of(std::uint32_t group) const {
    return {all[group * 4], all[group * 4 + 1], all[group * 4 + 2], all[group * 4 + 3]};
  }
};

// By all consumer warps.
template <typename Element, typename Stage, bool kExtras>
class Handover {
 public:
  // The number of the warp among those that do the same.
  __device__ Handover(const FewRowsArgs& args, const Shared& shared, std::uint32_t warp)
      : args_(args), shared_(shared), rank_(cluster_rank()), warp_(warp), lane_(threadIdx.x % 32) {}

  // Calls multiply(tiles, sums) for each tile, which adds this block's share of its columns.
  // By the consumer warps, which finish tiles, too.
  template <typename Multiply>
  __device__ void run(const Multiply& multiply) {
    load_scales();
    Outputs outputs;
    std::uint32_t done = 0;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance(), ++done) {
      Sums sums{};
      multiply(tiles, sums.all);
      if (done > 0) finish(outputs, done - 1);
      barrier();
      hand_over(sums, done);
      load_outputs(tiles.tile(), outputs);
    }
    finish(outputs, done - 1);
  }

  // The same where warps of their own, one for each group of tokens, run finish_tiles meanwhile.
  template <typename Multiply>
  __device__ void send_tiles(const Multiply& multiply) {
    std::uint32_t done = 0;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance(), ++done) {
      Sums sums{};
      multiply(tiles, sums.all);
      if (done > 1) wait_for_finished(done - 2);
      hand_over(sums, done);
    }
    if (done > 1) wait_for_finished(done - 2);
    wait_for_finished(done - 1);
  }

  __device__ void finish_tiles() const {
    float scales[8];
    row_scales<kExtras>(args_.epilogue, warp_ * 8, 1, scales);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (lane_ == 0) shared_.scale[warp_ * 8 + i] = scales[i];
    }
    __syncwarp();
    std::uint32_t done = 0;
    for (Tiles tiles(args_); tiles.exists(); tiles.advance(), ++done) {
      Outputs outputs;
      load_outputs(tiles.tile(), outputs);
      finish(outputs, done);
      named_arrive<kSendAndFinish>(kTileIsFinished + done % 2);
    }
  }

 private:
  static constexpr int kTokens = Stage::kTokens;
  static constexpr std::uint32_t kPlaces = Stage::kPlaces;
  using Sums = boxes::Sums<kTokens>;
  static constexpr int kSendAndFinish = kConsumerThreads + Sums::kGroups * 32;
  static constexpr std::uint32_t kTileIsFinished = 4;  // two barriers by turns

  __device__ static void wait_for_finished(std::uint32_t nth) {
    named_sync<kSendAndFinish>(kTileIsFinished + nth % 2);
  }
  static constexpr std::uint32_t kGroups = Sums::kGroups;
  // What a thread knows of the outputs that it finishes before their sums are there: those of warp
  // number rank_, of the group of tokens warp_.
  struct Outputs {
    std::uint32_t first;  // r
    float before[4];      // of Add: x
    OutputConstants constants[2];
  };

  __device__ static void barrier() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
  }

  // A warp has every kConsumers-th token; the loads of all are under way together.
  __device__ void load_scales() const {
    float scales[kTokens / kConsumers];
    row_scales<kExtras>(args_.epilogue, warp_, kConsumers, scales);
#pragma unroll
    for (int i = 0; i < kTokens / kConsumers; ++i) {
      if (lane_ == 0) shared_.scale[warp_ + i * kConsumers] = scales[i];
    }
    barrier();
  }

  // To the block that finishes this warp's outputs.
  __device__ void hand_over(const Sums& sums, std::uint32_t nth) const {
    const std::uint32_t to = address_in(warp_, shared_address(place(nth, rank_, 0)));
    const std::uint32_t handed = address_in(warp_, shared_address(&shared_.handed[nth % kPlaces]));
#pragma unroll
    for (std::uint32_t group = 0; group < kGroups; ++group) {
      send(to + group * 32 * sizeof(float4), sums.of(group), handed);
    }
  }

  // Where this thread's sums of a group are from one of the blocks.
  __device__ float4* place(std::uint32_t nth, std::uint32_t block, std::uint32_t group) const {
    return shared_.sums + ((nth % kPlaces * kCluster + block) * kGroups + group) * 32 + lane_;
  }

  // Of an output's i-th sum.
  __device__ std::uint32_t token(int i) const { return warp_ * 8 + lane_ % 4 * 2 + i % 2; }

  __device__ bool exists(std::uint32_t t, std::uint32_t output) const {
    return t < args_.epilogue.num_tokens && output < args_.epilogue.num_outputs;
  }

  __device__ void load_outputs(std::uint32_t tile, Outputs& outputs) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    outputs.first = first_output(args_, tile, rank_) + lane_ / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t output = outputs.first + i / 2 * 8;
      const bool adds = epilogue.kind == Epilogue::Add && exists(token(i), output);
      outputs.before[i] = adds ? load_output(epilogue, token(i), output) : 0.0F;
    }
    outputs.constants[0] = constants_of<kExtras>(epilogue, outputs.first);
    outputs.constants[1] = constants_of<kExtras>(epilogue, outputs.first + 8);
  }

  // By all warps, of which one finishes each group of tokens.
  __device__ void finish(const Outputs& outputs, std::uint32_t nth) const {
    if (warp_ >= kGroups) return;
    wait_barrier(&shared_.handed[nth % kPlaces], nth / kPlaces % 2);
    if (warp_ == 0 && lane_ == 0)
      arrive_expecting(&shared_.handed[nth % kPlaces], Places<kTokens>::kBytes);
    float sums[4] = {};
#pragma unroll
    for (std::uint32_t block = 0; block < kCluster; ++block) {
      const float4 part = *place(nth, block, warp_);
      sums[0] += part.x;
      sums[1] += part.y;
      sums[2] += part.z;
      sums[3] += part.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] *= shared_.scale[token(i)];
    if (args_.epilogue.kind == Epilogue::Gate) {
      finish_pairs(outputs.first, sums);
    } else {
      finish_sums(outputs, sums);
    }
  }

  __device__ void finish_sums(const Outputs& outputs, const float (&sums)[4]) const {
    float squares[2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t output = outputs.first + i / 2 * 8;
      if (!exists(token(i), output)) continue;
      const OutputConstants& constants = outputs.constants[i / 2];
      squares[i % 2] += finish_output<Element>(args_.epilogue, token(i), output,
                                               outputs.before[i] + sums[i] + constants.bias,
                                               constants.next_weight);
    }
    if (args_.next_square_sums == nullptr) return;
    store_squares(outputs.first, token(0), squares[0]);
    store_squares(outputs.first, token(1), squares[1]);
  }

  __device__ void finish_pairs(std::uint32_t output, const float (&sums)[4]) const {
    const EpilogueArgs& epilogue = args_.epilogue;
    if (output >= epilogue.num_outputs) return;
    const float gate_bias = bias_of<kExtras>(epilogue, output);
    const float up_bias = bias_of<kExtras>(epilogue, epilogue.num_outputs + output);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token(i) >= epilogue.num_tokens) continue;
      finish_gated<Element, kExtras>(epilogue, token(i), output, sums[i] + gate_bias,
                                     sums[i + 2] + up_bias);
    }
  }

  // The warp's outputs make one partial sum; lanes of equal lane % 4 have the same token.
  __device__ void store_squares(std::uint32_t first, std::uint32_t t, float squares) const {
    static_assert(kWarpRows == kNormPartRows);
    for (int lane = 4; lane < 32; lane *= 2) squares += __shfl_xor_sync(~0U, squares, lane);
    const std::uint32_t part = first / kNormPartRows;
    if (lane_ >= 4 || t >= args_.epilogue.num_tokens || part >= args_.num_next_sums) return;
    args_.next_square_sums[std::size_t{t} * args_.num_next_sums + part] = squares;
  }

  const FewRowsArgs& args_;
  const Shared& shared_;
  std::uint32_t rank_;
  std::uint32_t warp_;
  std::uint32_t lane_;
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda::boxes
