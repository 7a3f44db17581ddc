// Flash attention on wgmma, for head_dim 64 and 128: Shah et al., "FlashAttention-3", 2024.
//
// One block to a multiprocessor takes tiles in turn. Of its three warpgroups one only loads: a warp
// gathers keys and values, 16 positions at a time, through the tensor copy engine into two stages,
// another the next tile's queries. The two others have 64 rows each, the scores and sums in
// registers; while one of them takes exponentials, the tensor cores multiply for the other (they
// pass a turn), and each one's next scores are on their way, too.
//
// As in the portable kernel a row's bits do not depend on what else is in its block.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "ops/attention_prefill.cuh"
#include "ops/attention_wgmma.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr int kKeys = 128;  // positions of a tile
constexpr int kPiece = 16;  // positions of one copy; every block_size is a multiple
constexpr int kStages = 2;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroups = kPrefillRows / kGroupRows;
constexpr int kThreads = (kGroups + 1) * 128;

// Which tiles a block takes, longest first: forth and back along the blocks, so that who has the
// longest of one round has the shortest of the next.
class Schedule {
 public:
  __device__ explicit Schedule(std::uint32_t num_tasks) : num_tasks_(num_tasks) {}
  __device__ bool has(std::uint32_t round) const { return task(round) < num_tasks_; }
  __device__ std::uint32_t task(std::uint32_t round) const {
    const std::uint32_t place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return round * gridDim.x + place;
  }

 private:
  std::uint32_t num_tasks_;
};

struct KvMaps {
  CUtensorMap k;  // rows are positions of a KV head, 64 elements of 16 rows in a box
  CUtensorMap v;
};

#ifdef INFERNO_SM90A

// Planes of 64 elements (128 bytes) a row, as matrix_descriptor has them.
template <typename Element, int kRows, int kHeadDim>
struct SharedTile {
  static constexpr int kPlanes = kHeadDim / 64;
  static constexpr std::uint32_t kPlaneBytes = kRows * 128;

  Element elements[kPlanes][kRows][64];

  // Where dims 8 * chunk … of a row lie.
  __device__ uint4* at(std::uint32_t row, std::uint32_t chunk) {
    return reinterpret_cast<uint4*>(&elements[chunk / 8][row][(chunk % 8 ^ row % 8) * 8]);
  }
};

template <typename Element, int kHeadDim>
struct alignas(1024) PrefillShared {
  using Kv = SharedTile<Element, kKeys, kHeadDim>;
  using Q = SharedTile<Element, kPrefillRows, kHeadDim>;
  Q q[kStages];  // when they have been used, the results
  Kv k[kStages];
  Kv v[kStages];
  PrefillTask tasks[kStages];  // with q
  Barrier q_full[kStages];
  Barrier q_empty[kStages];
  Barrier k_full[kStages];
  Barrier k_empty[kStages];
  Barrier v_full[kStages];
  Barrier v_empty[kStages];

  __device__ void init() {
    for (int i = 0; i < kStages; ++i) {
      for (Barrier* full : {q_full, k_full, v_full}) full[i].init(1);
      for (Barrier* empty : {q_empty, k_empty, v_empty}) empty[i].init(kGroups * 4);  // warps
    }
    fence_barrier_init();
  }
};

// Counts uses of a ring's stages.
struct Turn {
  std::uint32_t count = 0;
  __device__ std::uint32_t stage() const { return count % kStages; }
  // Of the phase that ends when the stage is full; its users' is the same.
  __device__ std::uint32_t parity() const { return count / kStages % 2; }
};

// The warp that loads queries.
template <typename Element, int kHeadDim>
__device__ void load_queries(const PrefillParams& p, const Schedule& schedule,
                             PrefillShared<Element, kHeadDim>& shared) {
  constexpr std::uint32_t kChunks = kHeadDim / 8;
  const std::uint32_t lane = threadIdx.x % 32;
  for (Turn turn; schedule.has(turn.count); ++turn.count) {
    const PrefillTask task = prefill_task(p, schedule.task(turn.count));
    auto& q = shared.q[turn.stage()];
    shared.q_empty[turn.stage()].wait(turn.parity() ^ 1);
    if (lane == 0) shared.tasks[turn.stage()] = task;
#pragma unroll 4
    for (std::uint32_t i = lane; i < kPrefillRows * kChunks; i += 32) {
      const std::uint32_t row = min(i / kChunks, task.num_rows - 1);
      const std::size_t head = task.head_index(row, p.num_heads + 2 * p.num_kv_heads);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       shared_address(q.at(i / kChunks, i % kChunks))),
                   "l"(static_cast<const uint4*>(p.qkv) + head * kChunks + i % kChunks)
                   : "memory");
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) shared.q_full[turn.stage()].arrive();
  }
}

// The warp that copies keys and values.
template <typename Element, int kHeadDim>
class Copier {
  using Shared = PrefillShared<Element, kHeadDim>;
  using Kv = typename Shared::Kv;
  static constexpr std::uint32_t kPieces = kKeys / kPiece;
  static constexpr std::uint32_t kPieceBytes = kPiece * kHeadDim * sizeof(Element);

 public:
  __device__ Copier(const PrefillParams& p, const KvMaps& maps, Shared& shared)
      : p_(p), maps_(maps), shared_(shared) {}

  __device__ void run(const Schedule& schedule) {
    for (std::uint32_t round = 0; schedule.has(round); ++round) {
      task_ = prefill_task(p_, schedule.task(round));
      for (std::uint32_t i = 0; i * kKeys < task_.num_keys; ++i, ++turn_.count) copy(i);
    }
  }

 private:
  // Keys and values of tile i.
  __device__ void copy(std::uint32_t i) {
    const std::uint32_t stage = turn_.stage();
    if (i % (32 / kPieces) == 0) look_up(i * kPieces);
    shared_.k_empty[stage].wait(turn_.parity() ^ 1);
    copy_tile(maps_.k, shared_.k[stage], shared_.k_full[stage], i, kPieces);
    shared_.v_empty[stage].wait(turn_.parity() ^ 1);
    // A block's positions that are not yet written may hold anything, and 0 * NaN is not 0.
    const bool ragged = (i + 1) * kKeys > task_.num_keys && task_.num_keys % kPiece != 0;
    const std::uint32_t piece = ragged ? task_.num_keys % kKeys / kPiece : kPieces;
    if (ragged) copy_ragged(shared_.v[stage], i, piece);
    copy_tile(maps_.v, shared_.v[stage], shared_.v_full[stage], i, piece);
  }

  // Lane l keeps the row of piece first + l in the maps; one beyond the last row reads as zeros.
  __device__ void look_up(std::uint32_t first) {
    const std::uint32_t position = (first + threadIdx.x % 32) * kPiece;
    const std::uint32_t rows_per_block = p_.num_kv_heads << p_.block_shift;
    row_ = p_.num_blocks * rows_per_block;
    if (position >= task_.num_keys) return;
    row_ = task_.table[position >> p_.block_shift] * rows_per_block +
           (task_.kv_head << p_.block_shift) + position % (1U << p_.block_shift);
  }

  __device__ std::uint32_t row_of(std::uint32_t tile, std::uint32_t piece) const {
    return __shfl_sync(0xffffffffU, row_, tile * kPieces % 32 + piece);
  }

  // A lane for each box; all pieces but `left_out`.
  __device__ void copy_tile(const CUtensorMap& map, Kv& target, Barrier& full, std::uint32_t tile,
                            std::uint32_t left_out) {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t piece = lane % kPieces;
    const std::uint32_t plane = lane / kPieces;
    const std::uint32_t row = row_of(tile, piece);
    if (lane == 0) full.arrive_and_expect((kPieces - (left_out < kPieces)) * kPieceBytes);
    __syncwarp();
    if (plane < Kv::kPlanes && piece != left_out) {
      copy_box(&target.elements[plane][piece * kPiece], map, plane * 64, row, full);
    }
  }

  __device__ void copy_ragged(Kv& target, std::uint32_t tile, std::uint32_t piece) {
    constexpr std::uint32_t kChunks = kHeadDim / 8;
    const auto* source = reinterpret_cast<const uint4*>(
        static_cast<const Element*>(p_.v) + std::size_t{row_of(tile, piece)} * kHeadDim);
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x % 32; i < kPiece * kChunks; i += 32) {
      const bool valid = i / kChunks < task_.num_keys % kPiece;
      *target.at(piece * kPiece + i / kChunks, i % kChunks) =
          valid ? source[i] : make_uint4(0, 0, 0, 0);
    }
    fence_async_proxy();
    __syncwarp();
  }

  const PrefillParams& p_;
  const KvMaps& maps_;
  Shared& shared_;
  PrefillTask task_;
  Turn turn_;
  std::uint32_t row_;
};

// A warpgroup's 64 rows. Lane 4 * g + t of warp w has rows 16 w + g and 16 w + g + 8.
template <typename Element, int kHeadDim>
class RowGroup {
  using Shared = PrefillShared<Element, kHeadDim>;
  using Kv = typename Shared::Kv;
  using Q = typename Shared::Q;
  static constexpr std::uint32_t kChunks = kHeadDim / 8;

 public:
  __device__ RowGroup(const PrefillParams& p, Shared& shared)
      : p_(p), shared_(shared), group_(threadIdx.x / 128 - 1) {}

  __device__ void run(const Schedule& schedule) {
    if (group_ == 1) named_arrive<256>(kTurn);  // group 0 begins
    for (Turn turn; schedule.has(turn.count); ++turn.count) {
      const std::uint32_t stage = turn.stage();
      shared_.q_full[stage].wait(turn.parity());
      attend(shared_.tasks[stage], shared_.q[stage]);
      store(shared_.tasks[stage], shared_.q[stage]);
      release(shared_.q_empty[stage]);
    }
  }

 private:
  static constexpr std::uint32_t kTurn = 1;        // and 2
  static constexpr std::uint32_t kOwnThreads = 3;  // and 4

  __device__ void take_turn() const { named_sync<256>(kTurn + group_); }
  __device__ void pass_turn() const { named_arrive<256>(kTurn + (group_ ^ 1)); }

  // In its 64 rows' matrix; the other one is 8 further.
  __device__ static std::uint32_t own_row() {
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  }

  __device__ void start(const PrefillTask& task) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      limit_[r] = task.position(group_ * kGroupRows + own_row() + r * 8) + 1;
      maximum_[r] = -INFINITY;
      total_[r] = 0.0F;
    }
#pragma unroll
    for (float& sum : sums_) sum = 0.0F;
  }

  __device__ void attend(const PrefillTask& task, const Q& q) {
    const std::uint32_t num_tiles = (task.num_keys + kKeys - 1) / kKeys;
    start(task);
    take_turn();
    start_scores(q);
    pass_turn();
    finish_scores<0>(task, 0);
    pack_weights();
    for (std::uint32_t i = 1; i < num_tiles; ++i) {
      take_turn();
      start_scores(q);
      start_sums();
      pass_turn();
      finish_scores<1>(task, i);
      finish_sums();
      rescale_sums();
      pack_weights();
    }
    start_sums();
    finish_sums();
  }

  // The next tile's q · kᵀ, not yet waited for.
  __device__ void start_scores(const Q& rows) {
    shared_.k_full[k_turn_.stage()].wait(k_turn_.parity());
    const std::uint64_t q = matrix_descriptor(&rows.elements[0][group_ * kGroupRows], 0);
    const std::uint64_t k = matrix_descriptor(&shared_.k[k_turn_.stage()], 0);
    hold(scores_);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; ++s) {
      const std::uint64_t q_step = advanced(q, s / 4 * Q::kPlaneBytes + s % 4 * 32);
      const std::uint64_t k_step = advanced(k, s / 4 * Kv::kPlaneBytes + s % 4 * 32);
      if (s == 0) {
        wgmma_rows<Element, true>(scores_, q_step, k_step);
      } else {
        wgmma_rows<Element, false>(scores_, q_step, k_step);
      }
    }
    wgmma_commit();
  }

  // kPending products that were started later may go on.
  template <int kPending>
  __device__ void finish_scores(const PrefillTask& task, std::uint32_t tile) {
    wgmma_wait<kPending>();
    hold(scores_);
    release(shared_.k_empty[k_turn_.stage()]);
    ++k_turn_.count;
    softmax(task, tile);
  }

  // sums += weights · v of the next tile, not yet waited for.
  __device__ void start_sums() {
    shared_.v_full[v_turn_.stage()].wait(v_turn_.parity());
    const std::uint64_t v = matrix_descriptor(&shared_.v[v_turn_.stage()], Kv::kPlaneBytes);
    hold(sums_);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
      wgmma_columns<Element>(sums_, weights_[s], advanced(v, s * 16 * 128));
    }
    wgmma_commit();
  }

  __device__ void finish_sums() {
    wgmma_wait<0>();
    hold(sums_);
    release(shared_.v_empty[v_turn_.stage()]);
    ++v_turn_.count;
  }

  __device__ static void release(Barrier& empty) {
    if (threadIdx.x % 32 == 0) empty.arrive();
  }

  // Scores become weights against the new maximum.
  __device__ void softmax(const PrefillTask& task, std::uint32_t tile) {
    if ((tile + 1) * kKeys > task.first_position + 1) {
      mask(tile * kKeys + threadIdx.x % 4 * 2);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = maximum_[r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores_[4 * n + 2 * r], scores_[4 * n + 2 * r + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      rescale_[r] = exp2_fast((maximum_[r] - largest) * p_.scale_log2);
      maximum_[r] = largest;
      total_[r] *= rescale_[r];
      const float shift = largest * p_.scale_log2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores_[4 * n + 2 * r + i];
          score = exp2_fast(fmaf(score, p_.scale_log2, -shift));
          total_[r] += score;
        }
      }
    }
  }

  __device__ void mask(std::uint32_t column) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + n * 8 + i % 2 >= limit_[i / 2]) scores_[4 * n + i] = -INFINITY;
      }
    }
  }

  __device__ void rescale_sums() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums_[i] *= rescale_[i / 2 % 2];
  }

  __device__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weights_[i / 4][i % 4] = pack_pair<Element>(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  // Through q's place, whose use has ended, to rows of 16 bytes a lane.
  __device__ void store(const PrefillTask& task, Q& place) {
    const std::uint32_t first_row = group_ * kGroupRows;
    named_sync<128>(kOwnThreads + group_);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = total_[r];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      const float inverse = 1.0F / total;
      const std::uint32_t row = first_row + own_row() + r * 8;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        reinterpret_cast<std::uint32_t*>(place.at(row, n))[threadIdx.x % 4] =
            pack_pair<Element>(sums_[4 * n + 2 * r] * inverse, sums_[4 * n + 2 * r + 1] * inverse);
      }
    }
    named_sync<128>(kOwnThreads + group_);
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x % 128; i < kGroupRows * kChunks; i += 128) {
      const std::uint32_t row = first_row + i / kChunks;
      if (row >= task.num_rows) break;
      static_cast<uint4*>(p_.out)[task.head_index(row, p_.num_heads) * kChunks + i % kChunks] =
          *place.at(row, i % kChunks);
    }
    __syncwarp();
  }

  const PrefillParams& p_;
  Shared& shared_;
  std::uint32_t group_;
  Turn k_turn_;
  Turn v_turn_;
  std::uint32_t limit_[2];  // positions that the row sees
  float scores_[kKeys / 2];
  float sums_[kHeadDim / 2];
  std::uint32_t weights_[kKeys / 16][4];
  float maximum_[2];
  float rescale_[2];
  float total_[2];  // this lane's part
};

#endif  // INFERNO_SM90A

// Grid: any.
template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    attention_prefill_sm90_kernel(const __grid_constant__ PrefillParams p,
                                  const __grid_constant__ KvMaps maps) {
#ifdef INFERNO_SM90A
  extern __shared__ std::uint8_t dynamic_shared[];
  auto& shared = *reinterpret_cast<PrefillShared<Element, kHeadDim>*>(
      dynamic_shared + (0U - shared_address(dynamic_shared)) % 1024);
  let_next_start();
  if (threadIdx.x == 0) shared.init();
  const Schedule schedule(p.num_tiles * p.num_kv_heads);
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < 32) Copier<Element, kHeadDim>(p, maps, shared).run(schedule);
    if (threadIdx.x / 32 == 1) load_queries<Element, kHeadDim>(p, schedule, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    RowGroup<Element, kHeadDim>(p, shared).run(schedule);
  }
#endif
}

// cuTensorMapEncodeTiled, which only the driver has.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result),
        "cudaGetDriverEntryPointByVersion");
  if (result != cudaDriverEntryPointSuccess) {
    throw std::runtime_error("other: the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

CUtensorMap kv_map(const KvLayerCuda& layer, void* data) {
  static const auto encode = tensor_map_encoder();
  const cuuint64_t sizes[] = {layer.head_dim,
                              cuuint64_t{layer.num_blocks} * layer.num_kv_heads * layer.block_size};
  const cuuint64_t strides[] = {layer.head_dim * dtype_bytes(layer.dtype)};
  const cuuint32_t box[] = {64, kPiece};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map,
                                 layer.dtype == Dtype::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                            : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                 2, data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("other: cuTensorMapEncodeTiled: error " + std::to_string(status));
  }
  return map;
}

template <typename Element, int kHeadDim>
void launch_sm90(const CudaOp& op, const KvLayerCuda& layer, const PrefillParams& params) {
  const auto kernel = attention_prefill_sm90_kernel<Element, kHeadDim>;
  // As PrefillShared, whose type only the device's pass has: stages of q, k and v, then the rest
  // and what alignment takes.
  constexpr std::uint32_t kBytes =
      kStages * (kPrefillRows + 2 * kKeys) * kHeadDim * sizeof(Element) + 2048;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  const std::uint32_t grid = std::min(op.num_sms, params.num_tiles * params.num_kv_heads);
  launch(op, kernel, {grid, kThreads, kBytes}, params,
         KvMaps{kv_map(layer, layer.k), kv_map(layer, layer.v)});
}

}  // namespace

bool has_attention_prefill_sm90(const KvLayerCuda& layer) {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  return major == 9 && (layer.head_dim == 64 || layer.head_dim == 128);
}

void attention_prefill_sm90(const CudaOp& op, const KvLayerCuda& layer,
                            const PrefillParams& params) {
  const bool bf16 = layer.dtype == Dtype::BF16;
  if (layer.head_dim == 64) {
    bf16 ? launch_sm90<__nv_bfloat16, 64>(op, layer, params)
         : launch_sm90<__half, 64>(op, layer, params);
  } else {
    bf16 ? launch_sm90<__nv_bfloat16, 128>(op, layer, params)
         : launch_sm90<__half, 128>(op, layer, params);
  }
}

}  // namespace inferno::ops::cuda
