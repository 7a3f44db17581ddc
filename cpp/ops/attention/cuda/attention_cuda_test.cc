// Goal: attention on the GPU is right for ragged batches over any blocks, for each head_dim, group,
// block size and dtype, and a tile's rows have bits of their own.
// Method: random caches with NaN in every slot that must not be read, and no block where all have
// left the window, against float64; the same queries in chunks and other batches; a captured graph
// whose arrays change between replays.
#include "ops/attention/cuda/attention_cuda.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>

#include "ops/attention/cuda/attention_cuda_fixture.h"

namespace inferno::ops::cuda {
namespace {

std::vector<std::uint32_t> contexts(const std::vector<SequenceLens>& lens) {
  std::vector<std::uint32_t> lengths;
  for (const auto& each : lens) lengths.push_back(std::max(each.context_len, 1U));
  return lengths;
}

// Borders of blocks, of key tiles and of query tiles, and lengths at random.
std::vector<SequenceLens> ragged_lens(Random& random) {
  std::vector<SequenceLens> lens{{1, 1},     {2, 2},    {1, 15},    {1, 16},    {1, 17},   {16, 16},
                                 {64, 64},   {65, 65},  {128, 128}, {129, 129}, {5, 133},  {33, 64},
                                 {127, 300}, {2, 1000}, {1, 257},   {1, 700},   {300, 300}};
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t context_len = random.integer(1, 400);
    lens.push_back({random.integer(1, context_len), context_len});
  }
  random.shuffle(lens);
  return lens;
}

// The head sizes that have a kernel of their own.
constexpr std::uint32_t kHeadDims[] = {32, 64, 96, 128, 256};

// Keys and values in fp8, with scales that are no powers of two.
Heads in_fp8(Heads heads) {
  heads.fp8 = true;
  heads.k_scale = 0.037F;
  heads.v_scale = 0.29F;
  return heads;
}

// Every kind of rule in turn, with windows below, at and above the tiles' and the contexts' sizes.
Heads with_rule(Heads heads, std::uint32_t turn) {
  constexpr std::uint32_t kWindows[] = {16, 1, 128, 0, 5000, 37, 250};
  constexpr float kSoftcaps[] = {0, 2, 50, 0.5};
  heads.window = kWindows[turn % std::size(kWindows)];
  heads.softcap = kSoftcaps[turn % std::size(kSoftcaps)];
  heads.sinks = turn % 3 != 0;
  return heads;
}

std::string text(const Heads& heads) {
  return std::to_string(heads.num_heads) + " heads, " + std::to_string(heads.num_kv_heads) +
         " KV heads of " + std::to_string(heads.head_dim) + " " + dtype_name(heads.dtype) +
         ", blocks of " + std::to_string(heads.block_size) + ", window " +
         std::to_string(heads.window) + ", softcap " + std::to_string(heads.softcap) +
         (heads.sinks ? ", sinks" : "") + (heads.fp8 ? ", KV in fp8" : "");
}

// All heads, block sizes and dtypes in turn.
Heads any_heads(Dtype dtype, std::uint32_t head_dim, std::uint32_t turn) {
  constexpr std::uint32_t kGroups[] = {1, 2, 3, 4, 8, 12};
  constexpr std::uint32_t kBlockSizes[] = {16, 32, 64, 128};
  const std::uint32_t kv_heads = 1 + turn % 2;
  return {kv_heads * kGroups[turn % 6], kv_heads, head_dim, kBlockSizes[turn % 4], dtype};
}

// In a mixed batch and as tiles alone, by the card's own kernels and by the portable one.
void check_ragged_batch(const TestDevice& gpu, const Heads& heads, Random& random) {
  CAPTURE(text(heads));
  const auto lens = ragged_lens(random);
  const World world(heads, contexts(lens), random);
  for (const bool only_tiles : {false, true}) {
    for (const bool by_reference : {false, true}) {
      CAPTURE(only_tiles);
      CAPTURE(by_reference);
      Step step(world, lens, only_tiles);
      step.by_reference = by_reference;
      const auto out = step.run(gpu);
      step.check_against_reference(out, random);
      CHECK(step.run(gpu) == out);
    }
  }
}

void check_decodes(const TestDevice& gpu, const Heads& heads, std::uint32_t num_decodes,
                   std::uint32_t longest, Random& random) {
  CAPTURE(num_decodes);
  CAPTURE(text(heads));
  std::vector<SequenceLens> lens;
  for (std::uint32_t i = 0; i < num_decodes; ++i) {
    lens.push_back({1, random.integer(1, longest)});
  }
  lens[0].context_len = longest;
  const World world(heads, contexts(lens), random);
  const Step step(world, lens, false);
  step.check_against_reference(step.run(gpu), random);
}

// The same queries in pieces, which end and begin anywhere, give the same bits.
void check_chunks(const TestDevice& gpu, const Heads& heads, bool by_reference, Random& random) {
  CAPTURE(text(heads));
  const std::uint32_t length = random.integer(260, 700);
  const World world(heads, {length, 50}, random);
  const auto run = [&](const std::vector<SequenceLens>& lens) {
    Step step(world, lens, true);
    step.by_reference = by_reference;
    return step.run(gpu);
  };
  const auto whole = run({{length, length}, {50, 50}});
  const std::size_t width = std::size_t{heads.num_heads} * heads.head_dim;
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t end = random.integer(1, length);
    const std::uint32_t query_len = i < 4 ? 1 : random.integer(1, end);
    const auto chunk = run({{query_len, end}, {1, 7}});
    CAPTURE(end);
    CAPTURE(query_len);
    CHECK(std::equal(chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(query_len * width),
                     whole.begin() + static_cast<std::ptrdiff_t>((end - query_len) * width)));
  }
}

}  // namespace

TEST_CASE("a ragged mixed batch is within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = 0;
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : kHeadDims) {
      for (int i = 0; i < 3; ++i) {
        check_ragged_batch(gpu, any_heads(dtype, head_dim, turn++), random);
      }
    }
  }
}

TEST_CASE("KV in fp8: a ragged mixed batch is within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = random.integer(0, 83);
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : kHeadDims) {
      for (int i = 0; i < 3; ++i, ++turn) {
        const Heads heads = in_fp8(any_heads(dtype, head_dim, turn));
        check_ragged_batch(gpu, heads, random);
        check_ragged_batch(gpu, with_rule(heads, turn), random);
      }
    }
  }
}

TEST_CASE("KV in fp8: decodes of any number and context are within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = random.integer(0, 83);
  for (const auto& [num_decodes, longest] :
       {std::pair{1U, 5000U}, {3U, 3000U}, {40U, 900U}, {150U, 300U}}) {
    for (const std::uint32_t head_dim : kHeadDims) {
      for (const bool ruled : {false, true}) {
        Heads heads = in_fp8({8, 2, head_dim, 16, turn % 2 == 0 ? Dtype::BF16 : Dtype::F16});
        if (ruled) heads = with_rule(heads, turn);
        ++turn;
        check_decodes(gpu, heads, num_decodes, longest, random);
      }
    }
  }
}

TEST_CASE("KV in fp8: every code is read as its number") {
  TestDevice gpu;
  Random random(fresh_seed());
  // Sequences of one position each: attention to it alone gives its value.
  const std::vector<SequenceLens> lens(254, {1, 1});
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : kHeadDims) {
      Heads heads{1, 1, head_dim, 16, dtype};
      heads.fp8 = true;
      World world(heads, contexts(lens), random);
      for (std::uint32_t i = 0; i < 254; ++i) {
        const auto code = static_cast<std::uint8_t>(i + i / 127);  // not those of NaN
        std::ranges::fill(world.sequences[i].v, e4m3_to_f32(code));
      }
      world.upload();
      for (const bool only_tiles : {false, true}) {
        const auto out = Step(world, lens, only_tiles).run(gpu);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const float got = load_element(reinterpret_cast<const std::byte*>(out.data()), dtype, i);
          REQUIRE(got == world.sequences[i / head_dim].v[0]);
        }
      }
    }
  }
}

TEST_CASE("windows, soft-caps and sinks are within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = random.integer(0, 83);  // every pair of a window and a cap, in the long run
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : kHeadDims) {
      for (int i = 0; i < 4; ++i, ++turn) {
        check_ragged_batch(gpu, with_rule(any_heads(dtype, head_dim, turn), turn), random);
      }
    }
  }
}

TEST_CASE("decodes of any number and context are within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = random.integer(0, 83);
  for (const auto& [num_decodes, longest] :
       {std::pair{1U, 5000U}, {3U, 3000U}, {40U, 900U}, {150U, 300U}}) {
    for (const std::uint32_t head_dim : {64U, 128U, 256U}) {
      const Heads plain{8, 2, head_dim, 16, Dtype::BF16};
      const Heads heads = turn % 2 == 0 ? plain : with_rule(plain, turn);
      ++turn;
      check_decodes(gpu, heads, num_decodes, longest, random);
    }
  }
}

TEST_CASE("a tile's row has the same bits alone, in a chunk and in the whole prompt") {
  TestDevice gpu;
  Random random(fresh_seed());
  std::uint32_t turn = random.integer(0, 83);
  for (const std::uint32_t head_dim : kHeadDims) {
    const Heads heads{6, 2, head_dim, 16, Dtype::BF16};
    for (const bool by_reference : {false, true}) {
      CAPTURE(by_reference);
      check_chunks(gpu, heads, by_reference, random);
      for (int i = 0; i < 3; ++i) {
        check_chunks(gpu, with_rule(heads, turn++), by_reference, random);
      }
      check_chunks(gpu, in_fp8(heads), by_reference, random);
      check_chunks(gpu, with_rule(in_fp8(heads), turn++), by_reference, random);
    }
  }
}

TEST_CASE("a tile of a sequence without context gives zeros and holds nothing up") {
  TestDevice gpu;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : kHeadDims) {
    for (const bool ruled : {false, true}) {
      Heads heads{6, 2, head_dim, 16, Dtype::BF16};
      if (ruled) heads = with_rule(heads, 5);
      CAPTURE(text(heads));
      const std::vector<SequenceLens> lens{{1, 0}, {1, 40}, {1, 0}, {30, 90}, {1, 0}};
      const World world(heads, contexts(lens), random);
      const Step step(world, lens, true);
      const auto out = step.run(gpu);
      step.check_against_reference(out, random);
      const auto width = static_cast<std::ptrdiff_t>(heads.num_heads * head_dim);
      for (const std::ptrdiff_t row : {0, 2, 33}) {
        const auto begin = out.begin() + row * width;
        CHECK(std::all_of(begin, begin + width, [](auto bits) { return bits == 0; }));
      }
    }
  }
}

TEST_CASE("a captured graph follows the context lengths, and 0 gives zeros") {
  TestDevice gpu;
  Random random(fresh_seed());
  const std::vector<SequenceLens> longest{{1, 2000}, {1, 600}, {1, 1}};
  for (const std::uint32_t window : {0U, 128U, 700U}) {
    const bool sinks = window > 0;
    Heads heads{8, 2, 128, 16, Dtype::BF16, window, 0, sinks};
    if (window != 128) heads = in_fp8(heads);
    const World world(heads, contexts(longest), random);
    CAPTURE(text(heads));
    Step step(world, longest, false);
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    check(cudaStreamBeginCapture(gpu.op().stream, cudaStreamCaptureModeGlobal), "begin");
    for (int i = 0; i < 3; ++i) step.launch(gpu.op());
    check(cudaStreamEndCapture(gpu.op().stream, &graph), "end");
    check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
    for (int i = 0; i < 12; ++i) {
      const std::vector<SequenceLens> lens{
          {1, random.integer(1, 2000)}, {1, random.integer(0, 1) * random.integer(1, 600)}, {1, 0}};
      step.set(lens);
      check(cudaGraphLaunch(replay, gpu.op().stream), "cudaGraphLaunch");
      gpu.wait();
      const auto out = step.out();
      step.check_against_reference(out, random);
      CHECK(std::all_of(out.end() - 8 * 128, out.end(), [](auto bits) { return bits == 0; }));
    }
    check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
}

TEST_CASE("a rule without a scale, or with a negative cap, is refused") {
  TestDevice gpu;
  const KvLayerCuda layer{nullptr, nullptr, Dtype::BF16, 1, 16, 2, 128};
  for (const AttentionRule rule :
       {AttentionRule{.scale = 0}, AttentionRule{.scale = -1}, AttentionRule{.scale = NAN},
        AttentionRule{.scale = 1, .softcap = -1}, AttentionRule{.scale = 1, .softcap = NAN}}) {
    const AttentionCudaArgs args{.num_heads = 8, .rule = rule};
    CHECK_THROWS_AS(attention_cuda(gpu.op(), layer, args), std::invalid_argument);
  }
}

TEST_CASE("shapes without a kernel are refused") {
  KvLayerCuda layer{nullptr, nullptr, Dtype::BF16, 1, 16, 2, 128};
  CHECK_NOTHROW(check_attention_cuda(layer, 8));
  CHECK_THROWS_AS(check_attention_cuda(layer, 7), std::invalid_argument);
  CHECK_THROWS_AS(check_attention_cuda(layer, 512), std::invalid_argument);
  layer.head_dim = 80;
  CHECK_THROWS_AS(check_attention_cuda(layer, 8), std::invalid_argument);
  layer.head_dim = 128;
  layer.block_size = 24;
  CHECK_THROWS_AS(check_attention_cuda(layer, 8), std::invalid_argument);
  layer.block_size = 16;
  layer.dtype = Dtype::F32;
  CHECK_THROWS_AS(check_attention_cuda(layer, 8), std::invalid_argument);
}

}  // namespace inferno::ops::cuda
