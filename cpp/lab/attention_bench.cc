// How near the memory's pace (decode) and the tensor cores' (prefill) attention on the GPU is.
// Decodes run as a chain in a graph over several layers' caches, together larger than the L2.
//   attention_bench [PART OF THE NAMES [fp8]]      fp8: keys and values in fp8
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "lab/support/ceilings.h"
#include "lab/support/gpu_bench.h"
#include "ops/attention/cuda/attention_cuda.h"

namespace inferno::lab {
namespace {

using ops::cuda::AttentionCudaArgs;
using ops::cuda::AttentionTile;
using ops::cuda::KvLayerCuda;

constexpr std::uint32_t kBlockSize = 16;

struct Case {
  const char* name;
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t num_seqs;
  std::uint32_t query_len;
  std::uint32_t context_len;
  std::uint32_t num_layers;
  bool portable = false;  // by the kernel for every card
  std::uint32_t window = 0;
  float softcap = 0;
  bool sinks = false;
  bool fp8 = false;

  std::uint32_t blocks_of_a_seq() const { return (context_len + kBlockSize - 1) / kBlockSize; }
  std::uint32_t num_blocks() const { return blocks_of_a_seq() * num_seqs; }
  std::size_t kv_elements() const {
    return std::size_t{num_blocks()} * num_kv_heads * kBlockSize * head_dim;
  }
  std::size_t num_tokens() const { return std::size_t{num_seqs} * query_len; }
  std::uint32_t num_seen(std::uint32_t position) const {
    return window == 0 ? position + 1 : std::min(position + 1, window);
  }
  // Of queries and positions that they see, over all sequences.
  double num_pairs() const {
    double pairs = 0;
    for (std::uint32_t i = context_len - query_len; i < context_len; ++i) pairs += num_seen(i);
    return num_seqs * pairs;
  }
};

constexpr Case kCases[] = {
    {"8B decode 1 x 1", 32, 8, 128, 1, 1, 1, 128},
    {"8B decode 1 x 160", 32, 8, 128, 1, 1, 160, 128},
    {"7B decode 1 x 160", 32, 32, 128, 1, 1, 160, 48},
    {"1B decode 1 x 160", 32, 8, 64, 1, 1, 160, 192},
    {"8B decode 1 x 1024", 32, 8, 128, 1, 1, 1024, 24},
    {"8B decode 1 x 4096", 32, 8, 128, 1, 1, 4096, 12},
    {"8B decode 1 x 32768", 32, 8, 128, 1, 1, 32768, 4},
    {"8B decode 8 x 384", 32, 8, 128, 8, 1, 384, 12},
    {"8B decode 16 x 512", 32, 8, 128, 16, 1, 512, 6},
    {"8B decode 64 x 384", 32, 8, 128, 64, 1, 384, 4},
    {"8B decode 256 x 384", 32, 8, 128, 256, 1, 384, 2},
    {"7B decode 256 x 384", 32, 32, 128, 256, 1, 384, 1},
    {"1B decode 256 x 384", 32, 8, 64, 256, 1, 384, 2},
    {"8B prefill 8 x 2048", 32, 8, 128, 8, 2048, 2048, 2},
    {"7B prefill 8 x 2048", 32, 32, 128, 8, 2048, 2048, 2},
    {"1B prefill 8 x 2048", 32, 8, 64, 8, 2048, 2048, 2},
    {"8B prefill 1 x 2048", 32, 8, 128, 1, 2048, 2048, 2},
    {"8B prefill 512 of 8192", 32, 8, 128, 1, 512, 8192, 2},
    {"8B prefill 1 x 32768", 32, 8, 128, 1, 32768, 32768, 1},
    {"8B prefill 8 x 2048, portable", 32, 8, 128, 8, 2048, 2048, 2, true},
    {"1B prefill 8 x 2048, portable", 32, 8, 64, 8, 2048, 2048, 2, true},
    {"96 prefill 8 x 2048", 32, 8, 96, 8, 2048, 2048, 2},
    {"Phi-3-mini prefill 8 x 2048, window 2047", 32, 32, 96, 8, 2048, 2048, 2, false, 2047},
    {"96 prefill 8 x 2048, portable", 32, 8, 96, 8, 2048, 2048, 2, true},
    {"Gemma2-9B decode 64 x 2048, cap", 16, 8, 256, 64, 1, 2048, 1, false, 0, 50},
    {"Gemma2-9B decode 64 x 8192, window 4096, cap", 16, 8, 256, 64, 1, 8192, 1, false, 4096, 50},
    {"Gemma2-2B decode 64 x 1024, cap", 8, 4, 256, 64, 1, 1024, 2, false, 0, 50},
    {"Gemma2-2B decode 1 x 4096, cap", 8, 4, 256, 1, 1, 4096, 12, false, 0, 50},
    {"Gemma3-12B decode 64 x 2048", 16, 8, 256, 64, 1, 2048, 1},
    {"Gemma3-12B decode 256 x 384", 16, 8, 256, 256, 1, 384, 2},
    {"Gemma3-12B decode 64 x 2048, window 1024", 16, 8, 256, 64, 1, 2048, 2, false, 1024},
    {"Gemma3-12B decode 64 x 8192, window 1024", 16, 8, 256, 64, 1, 8192, 2, false, 1024},
    {"Gemma3-4B decode 64 x 2048, window 1024", 8, 4, 256, 64, 1, 2048, 2, false, 1024},
    {"Gemma3-4B decode 1 x 32768, window 1024", 8, 4, 256, 1, 1, 32768, 48, false, 1024},
    {"gpt-oss decode 64 x 2048, sinks", 64, 8, 64, 64, 1, 2048, 2, false, 0, 0, true},
    {"gpt-oss decode 256 x 1024, sinks", 64, 8, 64, 256, 1, 1024, 1, false, 0, 0, true},
    {"gpt-oss decode 64 x 1000, window 128, sinks", 64, 8, 64, 64, 1, 1000, 16, false, 128, 0,
     true},
    {"gpt-oss decode 256 x 1000, window 128, sinks", 64, 8, 64, 256, 1, 1000, 6, false, 128, 0,
     true},
    {"gpt-oss decode 256 x 4096, window 128, sinks", 64, 8, 64, 256, 1, 4096, 6, false, 128, 0,
     true},
    {"gpt-oss decode 1 x 4096, window 128, sinks", 64, 8, 64, 1, 1, 4096, 128, false, 128, 0, true},
    {"256 prefill 8 x 2048", 16, 4, 256, 8, 2048, 2048, 2},
    {"Gemma2-9B prefill 8 x 2048, cap", 16, 8, 256, 8, 2048, 2048, 2, false, 0, 50},
    {"Gemma2-9B prefill 2 x 8192, window 4096, cap", 16, 8, 256, 2, 8192, 8192, 2, false, 4096, 50},
    {"Gemma3-12B prefill 8 x 2048", 16, 8, 256, 8, 2048, 2048, 2},
    {"Gemma3-12B prefill 8 x 2048, window 1024", 16, 8, 256, 8, 2048, 2048, 2, false, 1024},
    {"Gemma3-12B prefill 1 x 16384", 16, 8, 256, 1, 16384, 16384, 2},
    {"Gemma3-12B prefill 1 x 16384, window 1024", 16, 8, 256, 1, 16384, 16384, 2, false, 1024},
    {"Gemma3-12B prefill 2048 of 16384, window 1024", 16, 8, 256, 1, 2048, 16384, 2, false, 1024},
    {"gpt-oss prefill 8 x 2048, sinks", 64, 8, 64, 8, 2048, 2048, 2, false, 0, 0, true},
    {"gpt-oss prefill 8 x 2048, window 128, sinks", 64, 8, 64, 8, 2048, 2048, 2, false, 128, 0,
     true},
    {"8B prefill 8 x 2048, window 1024", 32, 8, 128, 8, 2048, 2048, 2, false, 1024},
    {"256 prefill 8 x 2048, portable", 16, 4, 256, 8, 2048, 2048, 2, true},
};

// Per second.
struct Ceilings {
  double bytes;
  double operations;
};

std::vector<std::uint32_t> counting(std::uint32_t size, std::uint32_t step) {
  std::vector<std::uint32_t> values(size);
  for (std::uint32_t i = 0; i < size; ++i) values[i] = i * step;
  return values;
}

// As blocks lie after a while of taking and giving back.
std::vector<std::uint32_t> shuffled(std::uint32_t size) {
  std::vector<std::uint32_t> values = counting(size, 1);
  std::shuffle(values.begin(), values.end(), std::mt19937(1));
  return values;
}

// The longest first.
std::vector<AttentionTile> tiles_of(const Case& c) {
  std::vector<AttentionTile> tiles;
  if (c.query_len == 1) return tiles;
  const std::uint32_t rows = ops::cuda::attention_tile_rows(c.num_heads, c.num_kv_heads);
  for (std::uint32_t end = (c.query_len + rows - 1) / rows; end > 0; --end) {
    for (std::uint32_t seq = 0; seq < c.num_seqs; ++seq) tiles.push_back({seq, (end - 1) * rows});
  }
  return tiles;
}

class Bench {
 public:
  Bench(const Gpu& gpu, const Case& c)
      : gpu_(gpu),
        case_(c),
        qkv_(uniform_array(gpu, c.num_tokens() * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim)),
        cu_query_lens_(counting(c.num_seqs + 1, c.query_len)),
        context_lens_(std::vector(c.num_seqs, c.context_len)),
        block_tables_(shuffled(c.num_blocks())),
        decode_seqs_(counting(c.num_seqs, 1)),
        tiles_(tiles_of(c)),
        out_(c.num_tokens() * c.num_heads * c.head_dim),
        workspace_(ops::cuda::attention_cuda_workspace_bytes(c.head_dim)),
        sinks_(std::vector(c.num_heads, 0.5F)) {
    for (std::uint32_t i = 0; i < c.num_layers; ++i) {
      k_.push_back(uniform_array(gpu, c.kv_elements()));
      v_.push_back(uniform_array(gpu, c.kv_elements()));
    }
  }

  void run(const Ceilings& ceilings) const {
    const AttentionCudaArgs args = this->args();
    const double all_us = gpu_.median_us([&] {
      for (std::uint32_t i = 0; i < case_.num_layers; ++i) {
        ops::cuda::attention_cuda(gpu_.op(), layer(i), args);
      }
    });
    const Case& c = case_;
    const double us = all_us / c.num_layers;
    if (c.query_len == 1) {
      const double bytes = (c.fp8 ? 2.0 : 4.0) * c.num_pairs() * c.num_kv_heads * c.head_dim;
      const double alike = read_ceiling(gpu_, static_cast<std::size_t>(bytes));
      std::printf("%-46s %9.2f us  %6.3f TB/s    %5.1f %% of read  %5.1f %% of reads of its size\n",
                  c.name, us, bytes / us / 1e6, bytes / us * 1e8 / ceilings.bytes,
                  bytes / us * 1e8 / alike);
    } else {
      const double operations = 4.0 * c.num_pairs() * c.num_heads * c.head_dim;
      std::printf("%-46s %9.2f us  %6.1f TFLOP/s %5.1f %% of product\n", c.name, us,
                  operations / us / 1e6, operations / us * 1e8 / ceilings.operations);
    }
    std::fflush(stdout);
  }

 private:
  KvLayerCuda layer(std::uint32_t index) const {
    return {.k = k_[index].data(),
            .v = v_[index].data(),
            .dtype = ops::Dtype::BF16,
            .num_blocks = case_.num_blocks(),
            .block_size = kBlockSize,
            .num_kv_heads = case_.num_kv_heads,
            .head_dim = case_.head_dim,
            .fp8 = case_.fp8};
  }

  AttentionCudaArgs args() const {
    return {.qkv = qkv_.data(),
            .num_heads = case_.num_heads,
            .rule = {.scale = 1.0F / std::sqrt(static_cast<float>(case_.head_dim)),
                     .window = case_.window,
                     .softcap = case_.softcap,
                     .sinks = case_.sinks ? sinks_.data() : nullptr},
            .cu_query_lens = cu_query_lens_.data(),
            .context_lens = context_lens_.data(),
            .block_tables = block_tables_.data(),
            .block_table_stride = case_.blocks_of_a_seq(),
            .decode_seqs = decode_seqs_.data(),
            .num_decodes = case_.query_len == 1 ? case_.num_seqs : 0,
            .tiles = tiles_.data(),
            .num_tiles = static_cast<std::uint32_t>(tiles_.size()),
            .out = out_.data(),
            .reference = case_.portable,
            .workspace = workspace_.data()};
  }

  const Gpu& gpu_;
  Case case_;
  DeviceArray<Bf16> qkv_;
  DeviceArray<std::uint32_t> cu_query_lens_, context_lens_, block_tables_, decode_seqs_;
  DeviceArray<AttentionTile> tiles_;
  DeviceArray<Bf16> out_;
  DeviceArray<std::byte> workspace_;
  DeviceArray<float> sinks_;
  std::vector<DeviceArray<Bf16>> k_, v_;  // of each layer
};

void run(std::string_view wanted, bool fp8) {
  const Gpu gpu;
  const double bytes = print_read_ceiling(gpu);
  const Ceilings ceilings{bytes, print_product_ceiling(gpu)};
  for (Case c : kCases) {
    if (std::string_view(c.name).find(wanted) == std::string_view::npos) continue;
    c.fp8 = fp8;
    if (fp8) c.num_layers *= 2;  // of half the bytes
    Bench(gpu, c).run(ceilings);
  }
}

}  // namespace
}  // namespace inferno::lab

int main(int argc, char** argv) {
  return inferno::lab::run_bench([&] {
    inferno::lab::run(argc > 1 ? argv[1] : "", argc > 2 && std::string_view(argv[2]) == "fp8");
  });
}
