// For attention_cuda_test: sequences in a paged cache on the device, steps over them, float64.
#pragma once

#include <algorithm>
#include <memory>

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/base/test_support.h"
#include "ops/cuda/cuda_test_support.h"

namespace inferno::ops::cuda {

using ops::test::Random;
using test::DeviceBuffer;
using test::fresh_seed;
using test::TestDevice;

struct Heads {
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t block_size;
  Dtype dtype;
  std::uint32_t window = 0;
  float softcap = 0;
  bool sinks = false;
  bool fp8 = false;  // keys and values
  float k_scale = 1.0F;
  float v_scale = 1.0F;

  // What the cache has of a key or value.
  float kept(float value, float scale) const {
    return fp8 ? e4m3_to_f32(f32_to_e4m3(value / scale)) : ops::test::rounded(value, dtype);
  }

  // The first position that the token at `position` sees.
  std::uint32_t first_seen(std::uint32_t position) const {
    return window > 0 && position >= window ? position + 1 - window : 0;
  }
};

struct SequenceLens {
  std::uint32_t query_len;
  std::uint32_t context_len;
};

// Queries, keys and values of one sequence at every position, as the cache rounds them; of fp8
// without their scale.
struct Sequence {
  std::vector<float> q;
  std::vector<float> k;
  std::vector<float> v;

  Sequence(const Heads& heads, std::uint32_t length, Random& random) {
    const auto make = [&](std::uint32_t num_heads) {
      return random.normals(std::size_t{length} * num_heads * heads.head_dim);
    };
    q = make(heads.num_heads);
    for (float& value : q) value = ops::test::rounded(value, heads.dtype);
    k = make(heads.num_kv_heads);
    for (float& value : k) value = heads.kept(value, heads.k_scale);
    v = make(heads.num_kv_heads);
    for (float& value : v) value = heads.kept(value, heads.v_scale);
  }
};

struct Expected {
  double value;
  double magnitude;  // the sum of the terms' absolute values, which bounds the error of rounding
};

// One row by the rule's own words, in double; `sink` counts where the heads have sinks.
inline std::vector<Expected> reference(const Heads& heads, const Sequence& sequence, float sink,
                                       std::size_t position, std::size_t head) {
  const std::size_t dim = heads.head_dim;
  const std::size_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
  const std::size_t first = heads.first_seen(static_cast<std::uint32_t>(position));
  const float* q = sequence.q.data() + (position * heads.num_heads + head) * dim;
  std::vector<double> weights(position + 1);
  double maximum = heads.sinks ? sink : -INFINITY;
  for (std::size_t p = first; p <= position; ++p) {
    const float* k = sequence.k.data() + (p * heads.num_kv_heads + kv_head) * dim;
    for (std::size_t d = 0; d < dim; ++d) weights[p] += double{q[d]} * k[d];
    weights[p] *= heads.k_scale / std::sqrt(static_cast<double>(dim));
    if (heads.softcap > 0) weights[p] = heads.softcap * std::tanh(weights[p] / heads.softcap);
    maximum = std::max(maximum, weights[p]);
  }
  double total = heads.sinks ? std::exp(sink - maximum) : 0.0;
  for (std::size_t p = first; p <= position; ++p) {
    total += weights[p] = std::exp(weights[p] - maximum);
  }
  std::vector<Expected> out(dim);
  for (std::size_t p = first; p <= position; ++p) {
    const float* v = sequence.v.data() + (p * heads.num_kv_heads + kv_head) * dim;
    for (std::size_t d = 0; d < dim; ++d) {
      const double value = double{v[d]} * heads.v_scale;
      out[d].value += weights[p] / total * value;
      out[d].magnitude += weights[p] / total * std::abs(value);
    }
  }
  return out;
}

// Two roundings to the dtype, of each weight and of the result, and a 16th of the first for sums in
// float32; the constant is for weights that are subnormal in F16.
inline double tolerance(const Expected& expected, Dtype dtype) {
  const double rounding = dtype == Dtype::BF16 ? 0x1p-8 : 0x1p-11;  // half of a unit beside 1
  return rounding * (1.0625 * expected.magnitude + std::abs(expected.value)) + 2e-5;
}

// Some sequences and the cache that holds them, in blocks placed at random.
class World {
 public:
  World(const Heads& heads, const std::vector<std::uint32_t>& lengths, Random& random)
      : heads(heads) {
    std::uint32_t num_blocks = 3;
    for (const std::uint32_t length : lengths) {
      sequences.emplace_back(heads, length, random);
      const std::uint32_t needed = (length + heads.block_size - 1) / heads.block_size;
      num_blocks += needed;
      stride = std::max(stride, needed + 1);
    }
    std::vector<std::uint32_t> free(num_blocks);
    for (std::uint32_t id = 0; id < num_blocks; ++id) free[id] = id;
    random.shuffle(free);
    tables.assign(lengths.size() * stride, 0xffffffffU);
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (std::uint32_t p = 0; p < lengths[s]; ++p) {
        std::uint32_t& id = tables[s * stride + p / heads.block_size];
        if (p % heads.block_size == 0) {
          id = free.back();
          free.pop_back();
        }
      }
    }
    spare_block = free.back();
    sinks = random.normals(heads.num_heads);
    for (float& sink : sinks) sink *= 3.0F;
    sinks_ = std::make_unique<DeviceBuffer<float>>(sinks);
    layer = {.dtype = heads.dtype,
             .num_blocks = num_blocks,
             .block_size = heads.block_size,
             .num_kv_heads = heads.num_kv_heads,
             .head_dim = heads.head_dim,
             .fp8 = heads.fp8,
             .k_scale = heads.k_scale,
             .v_scale = heads.v_scale};
    upload();
  }

  // What the sequences have of keys and values becomes the cache.
  void upload() {
    const std::size_t row = heads.head_dim;
    const std::size_t head_bytes = heads.block_size * row * (heads.fp8 ? 1 : 2);
    std::vector<std::byte> k(layer.num_blocks * heads.num_kv_heads * head_bytes, std::byte{0xff});
    std::vector<std::byte> v = k;
    const Dtype kept_as = heads.fp8 ? Dtype::Fp8 : heads.dtype;
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const std::size_t rows = sequences[s].k.size() / row;
      for (std::size_t i = 0; i < rows; ++i) {
        const std::size_t p = i / heads.num_kv_heads;
        const std::size_t id = tables[s * stride + p / heads.block_size];
        const std::size_t head = id * heads.num_kv_heads + i % heads.num_kv_heads;
        const std::size_t slot = head * heads.block_size + p % heads.block_size;
        for (std::size_t d = 0; d < row; ++d) {
          store_element(k.data(), kept_as, slot * row + d, sequences[s].k[i * row + d]);
          store_element(v.data(), kept_as, slot * row + d, sequences[s].v[i * row + d]);
        }
      }
    }
    k_ = std::make_unique<DeviceBuffer<std::byte>>(k);
    v_ = std::make_unique<DeviceBuffer<std::byte>>(v);
    layer.k = k_->data();
    layer.v = v_->data();
  }

  std::vector<std::byte> keys() const { return k_->to_host(); }
  std::vector<std::byte> values() const { return v_->to_host(); }

  std::uint16_t bits(float value) const {
    return heads.dtype == Dtype::BF16 ? f32_to_bf16(value) : f32_to_f16(value);
  }

  AttentionRule rule() const {
    return {.scale = 1.0F / std::sqrt(static_cast<float>(heads.head_dim)),
            .window = heads.window,
            .softcap = heads.softcap,
            .sinks = heads.sinks ? sinks_->data() : nullptr};
  }

  Heads heads;
  std::vector<Sequence> sequences;
  std::vector<float> sinks;
  std::uint32_t spare_block = 0;  // in no table; all NaN
  std::vector<std::uint32_t> tables;
  std::uint32_t stride = 0;
  KvLayerCuda layer;

 private:
  std::unique_ptr<DeviceBuffer<std::byte>> k_;
  std::unique_ptr<DeviceBuffer<std::byte>> v_;
  std::unique_ptr<DeviceBuffer<float>> sinks_;
};

// One step over a world: sequence s has its query tokens end at context_len. Sequences of one
// query token are decodes, or tiles as all others where `only_tiles` is set.
class Step {
 public:
  Step(const World& world, const std::vector<SequenceLens>& lens, bool only_tiles)
      : world_(world),
        cu_query_lens_(lens.size() + 1),
        context_lens_(lens.size()),
        tables_(world.tables),
        workspace_(attention_cuda_workspace_bytes(world.heads.head_dim)) {
    const Heads& heads = world.heads;
    const std::uint32_t rows = attention_tile_rows(heads.num_heads, heads.num_kv_heads);
    std::vector<AttentionTile> tiles;
    std::vector<std::uint32_t> decodes;
    for (std::uint32_t s = 0; s < lens.size(); ++s) {
      if (lens[s].query_len == 1 && !only_tiles) {
        decodes.push_back(s);
      } else {
        for (std::uint32_t i = 0; i < lens[s].query_len; i += rows) tiles.push_back({s, i});
      }
    }
    tiles_ = std::make_unique<DeviceBuffer<AttentionTile>>(tiles);
    decodes_ = std::make_unique<DeviceBuffer<std::uint32_t>>(decodes);
    workspace_.zero();
    num_tiles_ = static_cast<std::uint32_t>(tiles.size());
    num_decodes_ = static_cast<std::uint32_t>(decodes.size());
    set(lens);
  }

  // The same step for other contexts; the query lengths stay.
  void set(const std::vector<SequenceLens>& lens) {
    const Heads& heads = world_.heads;
    lens_ = lens;
    std::vector<std::uint32_t> cu_query_lens{0};
    std::vector<std::uint32_t> context_lens;
    std::vector<std::uint16_t> qkv;
    for (std::size_t s = 0; s < lens.size(); ++s) {
      const std::size_t width = std::size_t{heads.num_heads} * heads.head_dim;
      cu_query_lens.push_back(cu_query_lens.back() + lens[s].query_len);
      context_lens.push_back(lens[s].context_len);
      for (std::uint32_t i = 0; i < lens[s].query_len; ++i) {
        const std::size_t position =
            lens[s].context_len == 0 ? 0 : lens[s].context_len - lens[s].query_len + i;
        const float* q = world_.sequences[s].q.data() + position * width;
        for (std::size_t d = 0; d < width; ++d) qkv.push_back(world_.bits(q[d]));
        qkv.insert(qkv.end(), std::size_t{2} * heads.num_kv_heads * heads.head_dim, 0xffffU);
      }
    }
    tables_.copy_from(tables_after_giving_back());
    cu_query_lens_.copy_from(cu_query_lens);
    context_lens_.copy_from(context_lens);
    if (!qkv_) {
      qkv_ = std::make_unique<DeviceBuffer<std::uint16_t>>(qkv);
      out_ = std::make_unique<DeviceBuffer<std::uint16_t>>(std::size_t{cu_query_lens.back()} *
                                                           heads.num_heads * heads.head_dim);
    }
    qkv_->copy_from(qkv);
    out_->copy_from(std::vector<std::uint16_t>(out_->size(), 0xffffU));
  }

  bool by_reference = false;  // the tiles' kernel

  void launch(const CudaOp& op) const {
    AttentionCudaArgs args;
    args.qkv = qkv_->data();
    args.num_heads = world_.heads.num_heads;
    args.rule = world_.rule();
    args.cu_query_lens = cu_query_lens_.data();
    args.context_lens = context_lens_.data();
    args.block_tables = tables_.data();
    args.block_table_stride = world_.stride;
    args.decode_seqs = decodes_->data();
    args.num_decodes = num_decodes_;
    args.tiles = tiles_->data();
    args.num_tiles = num_tiles_;
    args.out = out_->data();
    args.reference = by_reference;
    args.workspace = workspace_.data();
    attention_cuda(op, world_.layer, args);
  }

  std::vector<std::uint16_t> run(const TestDevice& gpu) const {
    launch(gpu.op());
    gpu.wait();
    return out();
  }

  std::vector<std::uint16_t> out() const {
    CHECK(out_->guards_are_whole());
    return out_->to_host();
  }

  // Compares some rows of each sequence, the first and the last among them, with float64.
  void check_against_reference(const std::vector<std::uint16_t>& out, Random& random) const {
    const Heads& heads = world_.heads;
    std::size_t first_row = 0;
    double worst = 0.0;
    for (std::size_t s = 0; s < lens_.size(); first_row += lens_[s++].query_len) {
      if (lens_[s].context_len == 0) continue;
      std::vector<std::uint32_t> rows{0, lens_[s].query_len - 1};
      for (int i = 0; i < 6; ++i) rows.push_back(random.integer(0, lens_[s].query_len - 1));
      for (const std::uint32_t row : rows) {
        const std::uint32_t head = random.integer(0, heads.num_heads - 1);
        const auto expected = reference(heads, world_.sequences[s], world_.sinks[head],
                                        lens_[s].context_len - lens_[s].query_len + row, head);
        for (std::size_t d = 0; d < heads.head_dim; ++d) {
          const std::size_t i = ((first_row + row) * heads.num_heads + head) * heads.head_dim + d;
          const float got =
              load_element(reinterpret_cast<const std::byte*>(out.data()), heads.dtype, i);
          const double error = std::abs(got - expected[d].value);
          worst =
              std::max(worst, std::isnan(got) ? 1e9 : error / tolerance(expected[d], heads.dtype));
        }
      }
    }
    CAPTURE(worst);
    CHECK(worst <= 1.0);  // share of the tolerance
  }

 private:
  // Without the blocks that end before the window of each sequence's first query token: in their
  // places stands no block's number, or that of a block of NaN.
  std::vector<std::uint32_t> tables_after_giving_back() const {
    std::vector<std::uint32_t> tables = world_.tables;
    const std::uint32_t block_size = world_.heads.block_size;
    for (std::size_t s = 0; s < lens_.size(); ++s) {
      if (lens_[s].context_len == 0) continue;
      const std::uint32_t first =
          world_.heads.first_seen(lens_[s].context_len - lens_[s].query_len);
      for (std::uint32_t block = 0; (block + 1) * block_size <= first; ++block) {
        tables[s * world_.stride + block] = block % 2 == 0 ? 0xffffffffU : world_.spare_block;
      }
    }
    return tables;
  }

  const World& world_;
  std::vector<SequenceLens> lens_;
  DeviceBuffer<std::uint32_t> cu_query_lens_;
  DeviceBuffer<std::uint32_t> context_lens_;
  DeviceBuffer<std::uint32_t> tables_;
  DeviceBuffer<std::byte> workspace_;
  std::unique_ptr<DeviceBuffer<AttentionTile>> tiles_;
  std::unique_ptr<DeviceBuffer<std::uint32_t>> decodes_;
  std::unique_ptr<DeviceBuffer<std::uint16_t>> qkv_;
  std::unique_ptr<DeviceBuffer<std::uint16_t>> out_;
  std::uint32_t num_tiles_ = 0;
  std::uint32_t num_decodes_ = 0;
};

}  // namespace inferno::ops::cuda
