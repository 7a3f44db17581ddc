// The part of the prefill kernel for sm_90a that loads: which tiles a block takes, its shared
// memory, the warp that gathers keys and values and those that gather queries. What a kernel before
// does not write (tiles, lengths, block tables) is read before that kernel has ended.
#pragma once

#include <cstdint>

#include "ops/attention/cuda/attention_prefill.cuh"
#include "ops/cuda/wgmma.cuh"

namespace inferno::ops::cuda {

inline constexpr int kCopiedKeys = 16;  // positions of one copy; every block_size is a multiple
inline constexpr int kLoadStages = 2;
inline constexpr int kRowGroupRows = 64;  // of a warpgroup
inline constexpr int kRowGroups = kPrefillRows / kRowGroupRows;

// What fits into the registers of a row group and into shared memory.
template <int kHeadDim>
struct PrefillShape {
  static constexpr int kKeyTile = kHeadDim > 128 ? 80 : 128;  // positions of a tile
  static constexpr int kQueryStages = kHeadDim > 128 ? 1 : kLoadStages;
  // Queries of a stage that are loaded and given back by themselves: where there is one stage, one
  // row group goes on while the other one's are on their way.
  static constexpr int kQueryParts = kQueryStages == 1 ? kRowGroups : 1;
  static constexpr int kPartRows = kPrefillRows / kQueryParts;
  static constexpr int kPlanes = (kHeadDim + 63) / 64;  // of 64 elements
  // As PrefillShared, whose type only the device's pass has: queries, keys and values, then the
  // rest and what alignment takes.
  static constexpr std::uint32_t kSharedBytes =
      (kQueryStages * kPrefillRows + 2 * kLoadStages * kKeyTile) * kPlanes * 128 + 2048;
};

inline constexpr int kQueryThreads = 96;  // that load queries
inline constexpr int kPrefillThreads = (kRowGroups + 1) * 128;

struct KvMaps {
  CUtensorMap k;  // rows are positions of a KV head, 64 elements of 16 rows in a box
  CUtensorMap v;
};

#ifdef INFERNO_SM90A

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

// Planes of 64 elements (128 bytes) a row, as matrix_descriptor has them. Of a head's last plane,
// what is beyond head_dim is not used.
template <typename Element, int kRows, int kHeadDim>
struct SharedTile {
  static constexpr int kPlanes = PrefillShape<kHeadDim>::kPlanes;
  static constexpr std::uint32_t kPlaneBytes = kRows * 128;

  Element elements[kPlanes][kRows][64];

  // Where dims 8 * chunk … of a row lie.
  __device__ uint4* at(std::uint32_t row, std::uint32_t chunk) {
    return reinterpret_cast<uint4*>(&elements[chunk / 8][row][(chunk % 8 ^ row % 8) * 8]);
  }
};

// Counts uses of a ring's stages.
template <int kStages>
struct RingPlace {
  std::uint32_t count = 0;
  __device__ std::uint32_t stage() const { return count % kStages; }
  // Of the phase that ends when the stage is full; its users' is the same.
  __device__ std::uint32_t parity() const { return count / kStages % 2; }
};

template <typename Element, int kHeadDim>
struct alignas(1024) PrefillShared {
  using Shape = PrefillShape<kHeadDim>;
  using Kv = SharedTile<Element, Shape::kKeyTile, kHeadDim>;
  using Q = SharedTile<Element, kPrefillRows, kHeadDim>;

  Q q[Shape::kQueryStages];  // when they have been used, the results
  Kv k[kLoadStages];
  Kv v[kLoadStages];
  PrefillTask tasks[Shape::kQueryStages][Shape::kQueryParts];  // with q
  // What the copy engine writes, one lane announces and a lane of each warp gives back; queries are
  // ordinary writes and reads, so there every thread speaks for itself.
  std::uint64_t q_full[Shape::kQueryStages][Shape::kQueryParts];
  std::uint64_t q_empty[Shape::kQueryStages][Shape::kQueryParts];
  std::uint64_t k_full[kLoadStages];
  std::uint64_t k_empty[kLoadStages];
  std::uint64_t v_full[kLoadStages];
  std::uint64_t v_empty[kLoadStages];

  // How many threads load queries, and announce a stage of keys or of values.
  __device__ void init(std::uint32_t query_threads, std::uint32_t kv_threads) {
    for (int i = 0; i < Shape::kQueryStages; ++i) {
      for (int part = 0; part < Shape::kQueryParts; ++part) {
        init_barrier(&q_full[i][part], query_threads);
        init_barrier(&q_empty[i][part], Shape::kPartRows / kRowGroupRows * 128);
      }
    }
    for (int i = 0; i < kLoadStages; ++i) {
      for (std::uint64_t* full : {k_full, v_full}) init_barrier(&full[i], kv_threads);
      for (std::uint64_t* empty : {k_empty, v_empty}) init_barrier(&empty[i], kRowGroups * 4);
    }
    fence_barrier_init();
  }
};

// The queries of a round's task, by kThreads threads of which this is `thread`.
template <int kThreads, typename Element, int kHeadDim>
__device__ void load_queries_of(const PrefillParams& p, const PrefillTask& task,
                                PrefillShared<Element, kHeadDim>& shared, std::uint32_t round,
                                std::uint32_t thread) {
  using Shape = PrefillShape<kHeadDim>;
  constexpr std::uint32_t kChunks = kHeadDim / 8;
  const RingPlace<Shape::kQueryStages> next{round};
  const std::uint32_t stage = next.stage();
  auto& q = shared.q[stage];
  for (std::uint32_t part = 0; part < Shape::kQueryParts; ++part) {
    wait_barrier(&shared.q_empty[stage][part], next.parity() ^ 1);
    if (thread == 0) shared.tasks[stage][part] = task;
#pragma unroll 4
    for (std::uint32_t i = thread; i < Shape::kPartRows * kChunks; i += kThreads) {
      const std::uint32_t to = part * Shape::kPartRows + i / kChunks;
      const std::uint32_t row = min(to, task.num_rows - 1);
      const std::size_t head = task.head_index(row, p.num_heads + 2 * p.num_kv_heads);
      copy_16(q.at(to, i % kChunks),
              static_cast<const uint4*>(p.qkv) + head * kChunks + i % kChunks, true);
    }
    commit_copies();
    wait_for_copies<0>();
    fence_async_proxy();
    arrive(&shared.q_full[stage][part]);
  }
}

// The warps that load queries, of which this is `thread`.
template <typename Element, int kHeadDim>
__device__ void load_queries(const PrefillParams& p, const Schedule& schedule,
                             PrefillShared<Element, kHeadDim>& shared, std::uint32_t thread) {
  for (std::uint32_t round = 0; schedule.has(round); ++round) {
    const PrefillTask task = prefill_task(p, schedule.task(round));
    if (round == 0) wait_for_previous();
    load_queries_of<kQueryThreads>(p, task, shared, round, thread);
  }
}

// Where in the cache a task's positions lie, kCopiedKeys at a time: a warp's lanes keep them.
template <int kHeadDim, bool kPlain>
class KeyPieces {
 public:
  static constexpr std::uint32_t kKeyTile = PrefillShape<kHeadDim>::kKeyTile;
  static constexpr std::uint32_t kPieces = kKeyTile / kCopiedKeys;
  static constexpr std::uint32_t kLookUpTiles = 32 / kPieces;

  __device__ explicit KeyPieces(const PrefillParams& p) : p_(p) {}

  __device__ void start(const PrefillTask& task) {
    task_ = task;
    first_tile_ = task.first_key<kPlain>(p_.rule) / kKeyTile;
    look_up(first_tile_);
  }

  __device__ const PrefillTask& task() const { return task_; }
  __device__ std::uint32_t first_tile() const { return first_tile_; }

  // Before the first use of a tile: they follow each other.
  __device__ void reach(std::uint32_t tile) {
    if (tile > first_tile_ && (tile - first_tile_) % kLookUpTiles == 0) look_up(tile);
  }

  // In rows of k and v; of a piece of which no position is seen one beyond the last.
  __device__ std::uint32_t row_of(std::uint32_t tile, std::uint32_t piece) const {
    return __shfl_sync(0xffffffffU, row_, (tile - first_tile_) % kLookUpTiles * kPieces + piece);
  }

 private:
  // Lane l keeps the row of piece l from this tile on.
  __device__ void look_up(std::uint32_t tile) {
    const std::uint32_t position = (tile * kPieces + threadIdx.x % 32) * kCopiedKeys;
    const std::uint32_t rows_per_block = p_.num_kv_heads << p_.block_shift;
    row_ = p_.num_blocks * rows_per_block;
    if (position >= task_.num_keys) return;
    if (!kPlain && position + kCopiedKeys <= task_.first_key<kPlain>(p_.rule)) return;
    row_ = task_.table[position >> p_.block_shift] * rows_per_block +
           (task_.kv_head << p_.block_shift) + position % (1U << p_.block_shift);
  }

  const PrefillParams& p_;
  PrefillTask task_;
  std::uint32_t first_tile_;
  std::uint32_t row_;
};

// The warp that copies keys and values. One row beyond the last reads as zeros.
template <typename Element, int kHeadDim, bool kPlain>
class Copier {
  using Shared = PrefillShared<Element, kHeadDim>;
  using Kv = typename Shared::Kv;
  using Pieces = KeyPieces<kHeadDim, kPlain>;
  static constexpr std::uint32_t kKeyTile = Pieces::kKeyTile;
  static constexpr std::uint32_t kPieces = Pieces::kPieces;
  static constexpr std::uint32_t kPieceBytes = kCopiedKeys * Kv::kPlanes * 128;

 public:
  __device__ Copier(const PrefillParams& p, const KvMaps& maps, Shared& shared)
      : p_(p), maps_(maps), shared_(shared), pieces_(p) {}

  __device__ void run(const Schedule& schedule) {
    if (threadIdx.x == 0) {
      prefetch_map(&maps_.k);
      prefetch_map(&maps_.v);
    }
    for (std::uint32_t round = 0; schedule.has(round); ++round) {
      pieces_.start(prefill_task(p_, schedule.task(round)));
      if (round == 0) wait_for_previous();
      const std::uint32_t num_keys = pieces_.task().num_keys;
      for (std::uint32_t i = pieces_.first_tile(); i * kKeyTile < num_keys; ++i, ++next_.count) {
        copy(i);
      }
    }
  }

 private:
  // Keys and values of tile i.
  __device__ void copy(std::uint32_t i) {
    const std::uint32_t stage = next_.stage();
    const std::uint32_t num_keys = pieces_.task().num_keys;
    pieces_.reach(i);
    wait_barrier(&shared_.k_empty[stage], next_.parity() ^ 1);
    copy_tile(maps_.k, shared_.k[stage], &shared_.k_full[stage], i, kPieces);
    wait_barrier(&shared_.v_empty[stage], next_.parity() ^ 1);
    // A block's positions that are not yet written may hold anything, and 0 * NaN is not 0.
    const bool ragged = (i + 1) * kKeyTile > num_keys && num_keys % kCopiedKeys != 0;
    const std::uint32_t piece = ragged ? num_keys % kKeyTile / kCopiedKeys : kPieces;
    if (ragged) copy_ragged(shared_.v[stage], i, piece);
    copy_tile(maps_.v, shared_.v[stage], &shared_.v_full[stage], i, piece);
  }

  // A lane for each box; all pieces but `left_out`.
  __device__ void copy_tile(const CUtensorMap& map, Kv& target, std::uint64_t* full,
                            std::uint32_t tile, std::uint32_t left_out) {
    const std::uint32_t lane = threadIdx.x % 32;
    const std::uint32_t piece = lane % kPieces;
    const std::uint32_t plane = lane / kPieces;
    const std::uint32_t row = pieces_.row_of(tile, piece);
    if (lane == 0) arrive_expecting(full, (kPieces - (left_out < kPieces)) * kPieceBytes);
    __syncwarp();
    if (plane < Kv::kPlanes && piece != left_out) {
      const std::uint32_t to = shared_address(&target.elements[plane][piece * kCopiedKeys]);
      copy_box(to, &map, {plane * 64, row}, full);
    }
  }

  __device__ void copy_ragged(Kv& target, std::uint32_t tile, std::uint32_t piece) {
    constexpr std::uint32_t kChunks = kHeadDim / 8;
    const auto* source = reinterpret_cast<const uint4*>(
        static_cast<const Element*>(p_.v) + std::size_t{pieces_.row_of(tile, piece)} * kHeadDim);
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x % 32; i < kCopiedKeys * kChunks; i += 32) {
      const bool valid = i / kChunks < pieces_.task().num_keys % kCopiedKeys;
      *target.at(piece * kCopiedKeys + i / kChunks, i % kChunks) =
          valid ? source[i] : make_uint4(0, 0, 0, 0);
    }
    fence_async_proxy();
    __syncwarp();
  }

  const PrefillParams& p_;
  const KvMaps& maps_;
  Shared& shared_;
  Pieces pieces_;
  RingPlace<kLoadStages> next_;
};

#endif  // INFERNO_SM90A

}  // namespace inferno::ops::cuda
