// Goal: attention on the GPU is right for ragged batches over any blocks, for each head_dim, group,
// block size and dtype, and a tile's rows have bits of their own.
// Method: random caches with NaN in every slot that must not be read, against float64; the same
// queries in chunks and other batches; a captured graph whose arrays change between replays.
#include "ops/attention/cuda/attention_cuda.h"

#include <algorithm>
#include <stdexcept>

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

}  // namespace

TEST_CASE("a ragged mixed batch is within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  const std::uint32_t groups[] = {1, 2, 3, 4, 8, 12};
  const std::uint32_t block_sizes[] = {16, 32, 64, 128};
  int turn = 0;
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
      for (int i = 0; i < 3; ++i, ++turn) {
        const std::uint32_t kv_heads = 1 + turn % 2;
        const Heads heads{kv_heads * groups[turn % 6], kv_heads, head_dim, block_sizes[turn % 4],
                          dtype};
        CAPTURE(heads.num_heads);
        CAPTURE(heads.num_kv_heads);
        CAPTURE(head_dim);
        CAPTURE(heads.block_size);
        CAPTURE(std::string(dtype_name(dtype)));
        const auto lens = ragged_lens(random);
        const World world(heads, contexts(lens), random);
        for (const bool only_tiles : {false, true}) {
          CAPTURE(only_tiles);
          const Step step(world, lens, only_tiles);
          const auto out = step.run(gpu);
          step.check_against_reference(out, random);
          CHECK(step.run(gpu) == out);
        }
      }
    }
  }
}

TEST_CASE("decodes of any number and context are within two roundings of float64") {
  TestDevice gpu;
  Random random(fresh_seed());
  for (const auto& [num_decodes, longest] :
       {std::pair{1U, 5000U}, {3U, 3000U}, {40U, 900U}, {150U, 300U}}) {
    for (const std::uint32_t head_dim : {64U, 128U, 256U}) {
      CAPTURE(num_decodes);
      CAPTURE(head_dim);
      std::vector<SequenceLens> lens;
      for (std::uint32_t i = 0; i < num_decodes; ++i)
        lens.push_back({1, random.integer(1, longest)});
      lens[0].context_len = longest;
      const World world({8, 2, head_dim, 16, Dtype::BF16}, contexts(lens), random);
      const Step step(world, lens, false);
      step.check_against_reference(step.run(gpu), random);
    }
  }
}

TEST_CASE("a tile's row has the same bits alone, in a chunk and in the whole prompt") {
  TestDevice gpu;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
    CAPTURE(head_dim);
    const Heads heads{6, 2, head_dim, 16, Dtype::BF16};
    const std::uint32_t length = random.integer(260, 400);
    const World world(heads, {length, 50}, random);
    const auto whole = Step(world, {{length, length}, {50, 50}}, true).run(gpu);
    const std::size_t width = std::size_t{heads.num_heads} * head_dim;
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t end = random.integer(1, length);
      const std::uint32_t query_len = i < 4 ? 1 : random.integer(1, end);
      const auto chunk = Step(world, {{query_len, end}, {1, 7}}, true).run(gpu);
      CAPTURE(end);
      CAPTURE(query_len);
      CHECK(std::equal(chunk.begin(),
                       chunk.begin() + static_cast<std::ptrdiff_t>(query_len * width),
                       whole.begin() + static_cast<std::ptrdiff_t>((end - query_len) * width)));
    }
  }
}

TEST_CASE("a tile of a sequence without context gives zeros and holds nothing up") {
  TestDevice gpu;
  Random random(fresh_seed());
  for (const std::uint32_t head_dim : {32U, 64U, 96U, 128U, 256U}) {
    CAPTURE(head_dim);
    const Heads heads{6, 2, head_dim, 16, Dtype::BF16};
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

TEST_CASE("the reference kernel and the card's own agree") {
  TestDevice gpu;
  Random random(fresh_seed());
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16}) {
    for (const std::uint32_t head_dim : {64U, 128U}) {
      CAPTURE(head_dim);
      const auto lens = ragged_lens(random);
      const World world({8, 2, head_dim, 32, dtype}, contexts(lens), random);
      Step step(world, lens, true);
      step.by_reference = true;
      step.check_against_reference(step.run(gpu), random);
    }
  }
}

TEST_CASE("a captured graph follows the context lengths, and 0 gives zeros") {
  TestDevice gpu;
  Random random(fresh_seed());
  const std::vector<SequenceLens> longest{{1, 2000}, {1, 600}, {1, 1}};
  const World world({8, 2, 128, 16, Dtype::BF16}, contexts(longest), random);
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

TEST_CASE("what has its place only is refused") {
  TestDevice gpu;
  const KvLayerCuda layer{nullptr, nullptr, Dtype::BF16, 1, 16, 2, 128};
  AttentionCudaArgs args{.num_heads = 8, .sliding_window = 4};
  CHECK_THROWS_AS(attention_cuda(gpu.op(), layer, args), std::invalid_argument);
  args = {.num_heads = 8, .logit_softcap = 30};
  CHECK_THROWS_AS(attention_cuda(gpu.op(), layer, args), std::invalid_argument);
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
