// The attention kernel on the lanes of simd_<isa>.h, which must be included before.
//
// A tile of positions is first brought from the KV blocks into float scratch, then every row of the
// task uses it: scores (rows x positions), softmax (row by row), sums (rows x dimensions).
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/attention/attention_task.h"
#include "ops/base/simd/simd_exp.h"
#include "ops/base/simd/simd_tanh.h"

namespace inferno::ops {
namespace {

constexpr std::size_t kTile = kPositionTile;
constexpr int kTileVectors = 4;  // of a register tile

// The vector that begins at element `index`, as floats.
template <typename L, Dtype D>
inline typename L::Vec widen(const std::byte* from, std::size_t index) {
  if constexpr (D == Dtype::F32) return L::load(reinterpret_cast<const float*>(from) + index);
  if constexpr (D == Dtype::Fp8) return L::from_fp8(from + index);
  const auto* source = reinterpret_cast<const std::uint16_t*>(from) + index;
  return D == Dtype::BF16 ? L::from_bf16(source) : L::from_f16(source);
}

// Converts `count` elements to float; memory beyond them is not touched.
template <typename L, Dtype D>
inline void convert(const std::byte* from, std::size_t index, std::size_t count, float* to) {
  std::size_t i = 0;
  for (; i + L::kWidth <= count; i += L::kWidth) L::store(to + i, widen<L, D>(from, index + i));
  if (i == count) return;
  alignas(64) std::byte rest[L::kWidth * dtype_bytes(D)] = {};
  const std::byte* source = from + (index + i) * dtype_bytes(D);
  for (std::size_t j = 0; j < (count - i) * dtype_bytes(D); ++j) rest[j] = source[j];
  L::store_first(to + i, widen<L, D>(rest, 0), count - i);
}

// Rows of elements: the first begins at `index`, the next `stride` elements on.
struct StridedRows {
  const std::byte* data;
  std::size_t index;
  std::size_t stride;
};

// `count` rows of kLength elements, the usual length, which then needs no loop.
template <typename L, Dtype D, std::size_t kLength>
inline void convert_rows(StridedRows from, std::size_t count, float* to, std::size_t to_stride) {
  for (std::size_t row = 0; row < count; ++row) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kLength; i += L::kWidth) {
      L::store(to + i, widen<L, D>(from.data, from.index + i));
    }
    from.index += from.stride;
    to += to_stride;
  }
}

// c[r, :] = start + sum over i < n of a[r, i] * b[i, :], in the order of i, for R rows and V
// vectors; start is 0, or c[r, :] * scale[r] where scale is given.
struct TileProduct {
  const float* a;
  std::size_t a_stride;
  const float* b;
  std::size_t b_stride;
  std::size_t n;
  float* c;
  std::size_t c_stride;
  const float* scale;
};

template <typename L, int R, int V>
void multiply_tile(const TileProduct& p, std::size_t column) {
  typename L::Vec sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const float* c = p.c + r * p.c_stride + column + v * L::kWidth;
      sums[r][v] = p.scale ? L::multiply(L::load(c), L::set(p.scale[r])) : L::set(0.0F);
    }
  }
  const float* a = p.a;
  const float* b = p.b + column;
  for (std::size_t i = 0; i < p.n; ++i) {
    typename L::Vec row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = L::load(b + v * L::kWidth);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const auto factor = L::set(a[r * p.a_stride + i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = L::multiply_add(row[v], factor, sums[r][v]);
    }
    b += p.b_stride;
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      L::store(p.c + r * p.c_stride + column + v * L::kWidth, sums[r][v]);
    }
  }
}

template <typename L, int R>
void multiply_rows(const TileProduct& p, std::size_t num_columns) {
  std::size_t column = 0;
  for (; column + kTileVectors * L::kWidth <= num_columns; column += kTileVectors * L::kWidth) {
    multiply_tile<L, R, kTileVectors>(p, column);
  }
  for (; column + 2 * L::kWidth <= num_columns; column += 2 * L::kWidth) {
    multiply_tile<L, R, 2>(p, column);
  }
  for (; column < num_columns; column += L::kWidth) multiply_tile<L, R, 1>(p, column);
}

// The product for any number of rows; num_columns is a multiple of 16.
template <typename L>
void multiply(TileProduct p, std::size_t num_rows, std::size_t num_columns) {
  const auto advance = [&p](std::size_t rows) {
    p.a += rows * p.a_stride;
    p.c += rows * p.c_stride;
    if (p.scale) p.scale += rows;
  };
  for (; num_rows >= L::kRows; num_rows -= L::kRows) {
    multiply_rows<L, L::kRows>(p, num_columns);
    advance(L::kRows);
  }
  if constexpr (L::kRows > 4) {
    for (; num_rows >= 4; num_rows -= 4) {
      multiply_rows<L, 4>(p, num_columns);
      advance(4);
    }
  }
  for (; num_rows > 0; --num_rows) {
    multiply_rows<L, 1>(p, num_columns);
    advance(1);
  }
}

template <typename L>
class AttentionRows {
 public:
  AttentionRows(const KvLayer& layer, const AttentionTask& task, float* scratch)
      : layer_(layer),
        task_(task),
        dims_(layer.head_dim),
        stride_((layer.head_dim + 15) / 16 * 16),
        num_rows_(std::size_t{task.num_tokens} * task.num_heads),
        window_(task.rule.window == 0 ? SIZE_MAX : task.rule.window),
        keys_(scratch),
        values_(keys_ + kTile * stride_),
        q_(values_ + kTile * stride_),
        sums_(q_ + kMaxTaskRows * stride_),
        scores_(sums_ + kMaxTaskRows * stride_),
        maximum_(scores_ + kMaxTaskRows * kTile),
        total_(maximum_ + kMaxTaskRows),
        rescale_(total_ + kMaxTaskRows) {}

  void run() {
    start();
    const std::size_t num_positions = std::size_t{task_.first_position} + task_.num_tokens;
    const std::size_t first = first_seen(0);
    for (std::size_t tile = first / kTile * kTile; tile < num_positions; tile += kTile) {
      const std::size_t left = num_positions - tile;
      bring_tile(tile, {first > tile ? first - tile : 0, left < kTile ? left : kTile});
      // The last token's window begins last.
      if (first_seen(task_.num_tokens - 1) <= tile) {
        add_tile(tile);
      } else {
        add_edge_tile(tile);
      }
    }
    finish();
  }

 private:
  // Positions begin to end - 1 of a tile.
  struct Seen {
    std::size_t begin;
    std::size_t end;
  };

  // The first position that token `token` sees.
  std::size_t first_seen(std::size_t token) const {
    const std::size_t position = task_.first_position + token;
    return position < window_ ? 0 : position - window_ + 1;
  }

  void start() {
    const float* sinks = task_.rule.sinks;
    for (std::size_t row = 0; row < num_rows_; ++row) {
      const float* q =
          task_.q + row / task_.num_heads * task_.q_row_stride + row % task_.num_heads * dims_;
      for (std::size_t d = 0; d < dims_; ++d) q_[row * stride_ + d] = q[d] * task_.rule.scale;
      for (std::size_t d = 0; d < stride_; ++d) sums_[row * stride_ + d] = 0.0F;
      maximum_[row] = sinks ? sinks[row % task_.num_heads] : -__builtin_inff();
      total_[row] = sinks ? 1.0F : 0.0F;
    }
  }

  void bring_tile(std::size_t tile, Seen seen) {
    switch (layer_.dtype) {
      case Dtype::F32:
        return bring_tile_of<Dtype::F32>(tile, seen);
      case Dtype::F16:
        return bring_tile_of<Dtype::F16>(tile, seen);
      case Dtype::BF16:
        return bring_tile_of<Dtype::BF16>(tile, seen);
      case Dtype::Fp8:
        return bring_tile_of<Dtype::Fp8>(tile, seen);
    }
  }

  // The seen positions to keys_ [dims_, kTile] and values_ [kTile, stride_]; what lies beside them
  // is 0 in the keys, as are the values' dimensions beyond dims_.
  template <Dtype D>
  void bring_tile_of(std::size_t tile, Seen seen) {
    const std::size_t block_size = layer_.block_size;
    for (std::size_t at = seen.begin; at < seen.end;) {
      const std::size_t offset = (tile + at) % block_size;
      const std::size_t in_block = block_size - offset;
      const std::size_t run = in_block < seen.end - at ? in_block : seen.end - at;
      const std::size_t block = task_.block_table[(tile + at) / block_size];
      const std::size_t head = block * layer_.num_kv_heads + task_.kv_head;
      const std::size_t start = head * dims_ * block_size;  // of keys and of values
      bring_keys<D>(start + offset, run, keys_ + at);
      bring_values<D>(start + offset * dims_, run, values_ + at * stride_);
      at += run;
    }
    if (seen.begin == 0 && seen.end == kTile) return;
    for (std::size_t d = 0; d < dims_; ++d) {
      for (std::size_t at = 0; at < seen.begin; ++at) keys_[d * kTile + at] = 0.0F;
      for (std::size_t at = seen.end; at < kTile; ++at) keys_[d * kTile + at] = 0.0F;
    }
  }

  // From element `index`, the first dimension's, `run` positions.
  template <Dtype D>
  void bring_keys(std::size_t index, std::size_t run, float* to) {
    const std::size_t block_size = layer_.block_size;
    const StridedRows keys{layer_.k, index, block_size};
    if (run == 32) return convert_rows<L, D, 32>(keys, dims_, to, kTile);
    if (run == 16) return convert_rows<L, D, 16>(keys, dims_, to, kTile);
    for (std::size_t d = 0; d < dims_; ++d) {
      convert<L, D>(layer_.k, index + d * block_size, run, to + d * kTile);
    }
  }

  template <Dtype D>
  void bring_values(std::size_t index, std::size_t run, float* to) {
    const StridedRows values{layer_.v, index, dims_};
    if (dims_ == 64) return convert_rows<L, D, 64>(values, run, to, stride_);
    if (dims_ == 128) return convert_rows<L, D, 128>(values, run, to, stride_);
    for (std::size_t i = 0; i < run; ++i) {
      convert<L, D>(layer_.v, index + i * dims_, dims_, to + i * stride_);
      for (std::size_t d = dims_; d < stride_; ++d) to[i * stride_ + d] = 0.0F;
    }
  }

  // How many positions of the tile token `token` attends to.
  std::size_t limit(std::size_t tile, std::size_t token) const {
    const std::size_t visible = task_.first_position + token + 1 - tile;
    return visible < kTile ? visible : kTile;
  }

  // Scores of the rows first to end - 1.
  void score(std::size_t first, std::size_t end) {
    multiply<L>({q_ + first * stride_, stride_, keys_, kTile, dims_, scores_ + first * kTile, kTile,
                 nullptr},
                end - first, kTile);
    if (task_.rule.softcap > 0.0F) cap(scores_ + first * kTile, scores_ + end * kTile);
  }

  void cap(float* scores, const float* end) const {
    const auto softcap = L::set(task_.rule.softcap);
    for (; scores < end; scores += L::kWidth) {
      L::store(scores, L::multiply(softcap, tanh<L>(L::divide(L::load(scores), softcap))));
    }
  }

  // A tile that is in the window of every token.
  void add_tile(std::size_t tile) {
    std::size_t token = tile > task_.first_position ? tile - task_.first_position : 0;
    const std::size_t first = token * task_.num_heads;
    score(first, num_rows_);
    for (std::size_t row = first; row < num_rows_; ++row) {
      soften<true>(row, {0, limit(tile, row / task_.num_heads)});
    }
    // Tokens that see the whole tile go together; the others each stop at their own position.
    for (; token < task_.num_tokens && limit(tile, token) < kTile; ++token) {
      add_values(token * task_.num_heads, task_.num_heads, {0, limit(tile, token)});
    }
    if (token < task_.num_tokens) {
      add_values(token * task_.num_heads, num_rows_ - token * task_.num_heads, {0, kTile});
    }
  }

  // A tile in which the windows of some tokens begin, or which they are past.
  void add_edge_tile(std::size_t tile) {
    std::size_t token = tile > task_.first_position ? tile - task_.first_position : 0;
    std::size_t end = task_.num_tokens;
    while (end > token && first_seen(end - 1) >= tile + kTile) --end;
    score(token * task_.num_heads, end * task_.num_heads);
    for (; token < end; ++token) {
      const std::size_t first = first_seen(token);
      const Seen seen{first > tile ? first - tile : 0, limit(tile, token)};
      const std::size_t row = token * task_.num_heads;
      for (std::size_t head = 0; head < task_.num_heads; ++head) soften<false>(row + head, seen);
      add_values(row, task_.num_heads, seen);
    }
  }

  void add_values(std::size_t row, std::size_t count, Seen seen) {
    multiply<L>({scores_ + row * kTile + seen.begin, kTile, values_ + seen.begin * stride_, stride_,
                 seen.end - seen.begin, sums_ + row * stride_, stride_, rescale_ + row},
                count, stride_);
  }

  // Scores of the seen positions to weights relative to the new maximum, the others to 0.
  template <bool kFromStart>  // seen.begin is 0
  void soften(std::size_t row, Seen seen) {
    float* scores = scores_ + row * kTile;
    const auto nothing = L::set(-__builtin_inff());
    const auto only_seen = [seen](typename L::Vec value, typename L::Vec other, std::size_t i) {
      const auto in_vector = [i](std::size_t n) { return n > i ? n - i : 0; };
      const auto kept = L::first_of(value, other, in_vector(seen.end));
      if constexpr (kFromStart) return kept;
      return L::first_of(other, kept, in_vector(seen.begin));
    };
    auto largest = nothing;
    for (std::size_t i = 0; i < kTile; i += L::kWidth) {
      largest = L::larger(largest, only_seen(L::load(scores + i), nothing, i));
    }
    const float in_tile = L::largest(largest);
    const float maximum = in_tile > maximum_[row] ? in_tile : maximum_[row];
    auto sum = L::set(0.0F);
    for (std::size_t i = 0; i < kTile; i += L::kWidth) {
      const auto weight = exp<L>(L::subtract(L::load(scores + i), L::set(maximum)));
      const auto kept = only_seen(weight, L::set(0.0F), i);
      L::store(scores + i, kept);
      sum = L::add(sum, kept);
    }
    rescale_[row] = L::first(exp<L>(L::set(maximum_[row] - maximum)));
    total_[row] = total_[row] * rescale_[row] + L::sum(sum);
    maximum_[row] = maximum;
  }

  void finish() {
    for (std::size_t row = 0; row < num_rows_; ++row) {
      float* out =
          task_.out + row / task_.num_heads * task_.out_row_stride + row % task_.num_heads * dims_;
      const float* sums = sums_ + row * stride_;
      const float total = total_[row] / layer_.v_scale;
      for (std::size_t d = 0; d < dims_; ++d) out[d] = sums[d] / total;
    }
  }

  const KvLayer& layer_;
  const AttentionTask& task_;
  const std::size_t dims_;
  const std::size_t stride_;  // dims_ padded to whole vectors
  const std::size_t num_rows_;
  const std::size_t window_;  // positions that a token sees
  float* const keys_;         // [dims_, kTile]
  float* const values_;       // [kTile, stride_]
  float* const q_;            // [num_rows_, stride_], scaled
  float* const sums_;         // [num_rows_, stride_]
  float* const scores_;       // [num_rows_, kTile]
  float* const maximum_;
  float* const total_;
  float* const rescale_;
};

}  // namespace
}  // namespace inferno::ops
