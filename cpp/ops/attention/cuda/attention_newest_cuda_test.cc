// Goal: decodes that take q, k and v as the product left them answer and leave the cache as if
// rope_kv_cuda had come before attention, bit by bit. Method: both ways over the same random step;
// NaN in the slots that neither may read, and all of the cache compared.
#include "ops/attention/cuda/attention_cuda_fixture.h"
#include "ops/rope/rope_kv_cuda.h"

namespace inferno::ops::cuda {
namespace {

struct Outcome {
  std::vector<std::uint16_t> out;
  std::vector<std::byte> k;
  std::vector<std::byte> v;
};

// A step of decodes, each with the last position of its sequence, behind them one without context.
class Decodes {
 public:
  Decodes(World& world, const std::vector<std::uint32_t>& lengths, Random& random)
      : world_(world),
        num_tokens_(static_cast<std::uint32_t>(lengths.size()) + 1),
        raw_(test::to_elements(random.normals(num_tokens_ * width()), world.heads.dtype)),
        qkv_(raw_),
        cos_sin_(random.normals(std::size_t{num_tokens_} * world.heads.head_dim)),
        cu_query_lens_(counting(num_tokens_ + 1)),
        decode_seqs_(counting(num_tokens_)),
        context_lens_(lengths.size() + 1),
        slots_(lengths.size() + 1),
        tables_(world.tables),
        workspace_(attention_cuda_workspace_bytes(world.heads.head_dim)),
        out_(std::size_t{num_tokens_} * world.heads.num_heads * world.heads.head_dim) {
    const std::uint32_t block_size = world.heads.block_size;
    std::vector<std::uint32_t> context_lens, slots;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      const std::uint32_t newest = lengths[s] - 1;
      const std::uint32_t block = world.tables[s * world.stride + newest / block_size];
      context_lens.push_back(lengths[s]);
      slots.push_back(block * block_size + newest % block_size);
    }
    context_lens.push_back(0);
    slots.push_back(kNoSlot);
    context_lens_.copy_from(context_lens);
    slots_.copy_from(slots);
    workspace_.zero();
  }

  Outcome run(const TestDevice& gpu, bool in_one) {
    const Heads& heads = world_.heads;
    world_.upload();
    qkv_.copy_from(raw_);
    if (!in_one) {
      rope_kv_cuda(gpu.op(), world_.layer,
                   {.qkv = qkv_.data(),
                    .cos_sin = cos_sin_.data(),
                    .slot_mapping = slots_.data(),
                    .num_tokens = num_tokens_,
                    .num_heads = heads.num_heads,
                    .rotary_dim = heads.head_dim});
    }
    attention_cuda(gpu.op(), world_.layer,
                   {.qkv = qkv_.data(),
                    .cos_sin = in_one ? cos_sin_.data() : nullptr,
                    .num_heads = heads.num_heads,
                    .rule = world_.rule(),
                    .cu_query_lens = cu_query_lens_.data(),
                    .context_lens = context_lens_.data(),
                    .block_tables = tables_.data(),
                    .block_table_stride = world_.stride,
                    .decode_seqs = decode_seqs_.data(),
                    .num_decodes = num_tokens_,
                    .out = out_.data(),
                    .workspace = workspace_.data()});
    gpu.wait();
    CHECK(out_.guards_are_whole());
    return {out_.to_host(), world_.keys(), world_.values()};
  }

 private:
  static std::vector<std::uint32_t> counting(std::uint32_t size) {
    std::vector<std::uint32_t> values(size);
    for (std::uint32_t i = 0; i < size; ++i) values[i] = i;
    return values;
  }
  std::size_t width() const {
    return std::size_t{world_.heads.num_heads + 2 * world_.heads.num_kv_heads} *
           world_.heads.head_dim;
  }

  World& world_;
  std::uint32_t num_tokens_;
  std::vector<std::uint16_t> raw_;  // q, k and v as the product leaves them
  DeviceBuffer<std::uint16_t> qkv_;
  DeviceBuffer<float> cos_sin_;
  DeviceBuffer<std::uint32_t> cu_query_lens_, decode_seqs_, context_lens_, slots_, tables_;
  DeviceBuffer<std::byte> workspace_;
  DeviceBuffer<std::uint16_t> out_;
};

// Few sequences, which blocks share, and so many that none is shared.
void check_both_ways(const TestDevice& gpu, const Heads& heads, Random& random) {
  CAPTURE(heads.num_heads);
  CAPTURE(heads.num_kv_heads);
  CAPTURE(heads.head_dim);
  CAPTURE(heads.block_size);
  CAPTURE(dtype_name(heads.dtype));
  CAPTURE(heads.fp8);
  CAPTURE(heads.window);
  for (const std::size_t many : {0, 150}) {
    std::vector<std::uint32_t> lengths{1, 15, 16, 17, 160, random.integer(600, 2000)};
    for (std::size_t i = 0; i < many; ++i) lengths.push_back(random.integer(1, 90));
    World world(heads, lengths, random);
    Decodes decodes(world, lengths, random);
    const Outcome apart = decodes.run(gpu, false);
    const Outcome in_one = decodes.run(gpu, true);
    CHECK(in_one.out == apart.out);
    CHECK(in_one.k == apart.k);
    CHECK(in_one.v == apart.v);
  }
}

}  // namespace

TEST_CASE("decodes turn q and k and write the cache as rope_kv_cuda does") {
  TestDevice gpu;
  Random random(fresh_seed());
  constexpr std::uint32_t kGroups[] = {1, 4, 12};
  std::uint32_t turn = random.integer(0, 11);
  for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
    for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
      for (const bool fp8 : {false, true}) {
        Heads heads{2 * kGroups[turn % 3], 2, head_dim, 16U << turn % 4, dtype};
        heads.fp8 = fp8;
        if (fp8) {
          heads.k_scale = 0.037F;
          heads.v_scale = 0.29F;
        }
        check_both_ways(gpu, heads, random);
        heads.window = 37;
        heads.sinks = true;
        check_both_ways(gpu, heads, random);
        ++turn;
      }
    }
  }
}

TEST_CASE("tiles are refused where q, k and v are as the product left them") {
  TestDevice gpu;
  const KvLayerCuda layer{nullptr, nullptr, Dtype::BF16, 1, 16, 2, 128};
  const DeviceBuffer<float> cos_sin(128);
  const AttentionCudaArgs args{
      .cos_sin = cos_sin.data(), .num_heads = 8, .rule = {.scale = 1}, .num_tiles = 1};
  CHECK_THROWS_AS(attention_cuda(gpu.op(), layer, args), std::invalid_argument);
}

}  // namespace inferno::ops::cuda
