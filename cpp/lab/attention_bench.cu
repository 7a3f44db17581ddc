// How near the memory's pace (decode) and the tensor cores' (prefill) attention on the GPU is.
// Decodes run as a chain in a graph over several layers' caches, together larger than the L2.
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I cpp cpp/lab/attention_bench.cu
//     cpp/ops/attention_*.cu cpp/ops/cuda_op.cc
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "ops/attention_cuda.h"
#include "ops/cuda_device.cuh"

namespace {

using namespace inferno::ops;
using namespace inferno::ops::cuda;

constexpr double kPeakBytes = 4.54e12;  // plain reads of an H200, measured
constexpr double kPeakFlops = 800e12;   // its bf16 matmul, measured
constexpr std::uint32_t kBlockSize = 16;

__global__ void fill(__nv_bfloat16* values, std::size_t count) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const auto hash = static_cast<std::uint32_t>(i * 2654435761U);
    values[i] = __float2bfloat16(static_cast<float>((hash >> 8) & 0xffffU) / 32768.0F - 1.0F);
  }
}

template <typename T>
T* device_array(std::size_t count) {
  T* data = nullptr;
  check(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)), "cudaMalloc");
  check(cudaMemset(data, 0, count * sizeof(T)), "cudaMemset");
  return data;
}

template <typename T>
T* device_copy(const std::vector<T>& values) {
  T* data = device_array<T>(std::max(values.size(), std::size_t{1}));
  check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return data;
}

__nv_bfloat16* random_elements(std::size_t count) {
  auto* data = device_array<__nv_bfloat16>(count);
  fill<<<1024, 256>>>(data, count);
  return data;
}

struct Case {
  const char* name;
  std::uint32_t num_heads;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::uint32_t num_seqs;
  std::uint32_t query_len;
  std::uint32_t context_len;
  std::uint32_t num_layers;
};

CudaOp make_op() {
  int sms = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), "attribute");
  CudaOp op{nullptr, static_cast<std::uint32_t>(sms), true};
  check(cudaStreamCreate(&op.stream), "cudaStreamCreate");
  return op;
}

// Microseconds of one pass over all layers, as a graph: the median of several.
double time_graph(const CudaOp& op, const std::function<void()>& pass) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(op.stream, cudaStreamCaptureModeGlobal), "begin");
  pass();
  check(cudaStreamEndCapture(op.stream, &graph), "end");
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t begin;
  cudaEvent_t end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 15; ++i) {
    cudaEventRecord(begin, op.stream);
    for (int j = 0; j < 2; ++j) check(cudaGraphLaunch(exec, op.stream), "launch");
    cudaEventRecord(end, op.stream);
    check(cudaEventSynchronize(end), "synchronize");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(ms / 2);
  }
  std::nth_element(times.begin() + 3, times.begin() + 9, times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return times[9] * 1e3;
}

class Bench {
 public:
  Bench(const CudaOp& op, const Case& c) : op_(op), case_(c) {
    const std::uint32_t blocks = (c.context_len + kBlockSize - 1) / kBlockSize;
    const std::uint32_t num_blocks = blocks * c.num_seqs;
    const std::size_t elements = std::size_t{num_blocks} * c.num_kv_heads * kBlockSize * c.head_dim;
    std::mt19937 random(1);
    std::vector<std::uint32_t> tables(num_blocks);
    std::iota(tables.begin(), tables.end(), 0U);
    std::shuffle(tables.begin(), tables.end(), random);
    for (std::uint32_t i = 0; i < c.num_layers; ++i) {
      layers_.push_back({random_elements(elements), random_elements(elements), Dtype::BF16,
                         num_blocks, kBlockSize, c.num_kv_heads, c.head_dim});
    }
    const std::size_t tokens = std::size_t{c.num_seqs} * c.query_len;
    std::vector<std::uint32_t> cu_query_lens;
    std::vector<std::uint32_t> seqs;
    for (std::uint32_t s = 0; s <= c.num_seqs; ++s) cu_query_lens.push_back(s * c.query_len);
    for (std::uint32_t s = 0; s < c.num_seqs; ++s) seqs.push_back(s);
    const auto tiles = c.query_len > 1 ? make_tiles() : std::vector<AttentionTile>{};
    args_.qkv = random_elements(tokens * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim);
    args_.num_heads = c.num_heads;
    args_.scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    args_.num_seqs = c.num_seqs;
    args_.cu_query_lens = device_copy(cu_query_lens);
    args_.context_lens = device_copy(std::vector<std::uint32_t>(c.num_seqs, c.context_len));
    args_.block_tables = device_copy(tables);
    args_.block_table_stride = blocks;
    args_.decode_seqs = device_copy(seqs);
    args_.num_decodes = c.query_len == 1 ? c.num_seqs : 0;
    args_.tiles = device_copy(tiles);
    args_.num_tiles = static_cast<std::uint32_t>(tiles.size());
    args_.out = device_array<__nv_bfloat16>(tokens * c.num_heads * c.head_dim);
    args_.workspace = device_array<std::byte>(
        attention_cuda_workspace_bytes(c.num_seqs, c.num_heads, c.num_kv_heads, c.head_dim));
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  ~Bench() {
    for (const auto& layer : layers_) {
      cudaFree(layer.k);
      cudaFree(layer.v);
    }
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void run() const {
    const double us = time_graph(op_,
                                 [this] {
                                   for (const auto& layer : layers_)
                                     attention_cuda(op_, layer, args_);
                                 }) /
                      case_.num_layers;
    const Case& c = case_;
    if (c.query_len == 1) {
      const double bytes = 4.0 * c.num_seqs * c.context_len * c.num_kv_heads * c.head_dim;
      std::printf("%-28s %9.2f us  %6.3f TB/s  %5.1f %% of 4.54\n", c.name, us, bytes / us / 1e6,
                  bytes / us * 1e8 / kPeakBytes);
    } else {
      const double pairs = 1.0 * c.query_len * (c.context_len - 0.5 * c.query_len);
      const double flops = 4.0 * c.num_seqs * c.num_heads * c.head_dim * pairs;
      std::printf("%-28s %9.2f us  %6.1f TFLOP/s  %5.1f %% of 800\n", c.name, us, flops / us / 1e6,
                  flops / us * 1e8 / kPeakFlops);
    }
  }

 private:
  // The longest first.
  std::vector<AttentionTile> make_tiles() const {
    const std::uint32_t rows =
        attention_tile_rows(case_.head_dim, case_.num_heads, case_.num_kv_heads);
    std::vector<AttentionTile> tiles;
    for (std::uint32_t end = (case_.query_len + rows - 1) / rows; end > 0; --end) {
      for (std::uint32_t s = 0; s < case_.num_seqs; ++s) tiles.push_back({s, (end - 1) * rows});
    }
    return tiles;
  }

  CudaOp op_;
  Case case_;
  std::vector<KvLayerCuda> layers_;
  AttentionCudaArgs args_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string_view wanted = argc > 1 ? argv[1] : "";  // a part of the names
  const CudaOp op = make_op();
  for (const Case& c : {
           Case{"8B decode 1 x 1", 32, 8, 128, 1, 1, 1, 128},
           Case{"8B decode 1 x 160", 32, 8, 128, 1, 1, 160, 128},
           Case{"7B decode 1 x 160", 32, 32, 128, 1, 1, 160, 48},
           Case{"1B decode 1 x 160", 32, 8, 64, 1, 1, 160, 192},
           Case{"8B decode 1 x 1024", 32, 8, 128, 1, 1, 1024, 24},
           Case{"8B decode 1 x 4096", 32, 8, 128, 1, 1, 4096, 12},
           Case{"8B decode 1 x 32768", 32, 8, 128, 1, 1, 32768, 4},
           Case{"8B decode 8 x 384", 32, 8, 128, 8, 1, 384, 12},
           Case{"8B decode 16 x 512", 32, 8, 128, 16, 1, 512, 6},
           Case{"8B decode 64 x 384", 32, 8, 128, 64, 1, 384, 4},
           Case{"8B decode 256 x 384", 32, 8, 128, 256, 1, 384, 2},
           Case{"7B decode 256 x 384", 32, 32, 128, 256, 1, 384, 1},
           Case{"1B decode 256 x 384", 32, 8, 64, 256, 1, 384, 2},
           Case{"8B prefill 8 x 2048", 32, 8, 128, 8, 2048, 2048, 2},
           Case{"7B prefill 8 x 2048", 32, 32, 128, 8, 2048, 2048, 2},
           Case{"1B prefill 8 x 2048", 32, 8, 64, 8, 2048, 2048, 2},
           Case{"8B prefill 1 x 2048", 32, 8, 128, 1, 2048, 2048, 2},
           Case{"8B prefill 512 of 8192", 32, 8, 128, 1, 512, 8192, 2},
           Case{"8B prefill 1 x 32768", 32, 8, 128, 1, 32768, 32768, 1},
           Case{"96 prefill 8 x 2048", 32, 8, 96, 8, 2048, 2048, 2},
           Case{"256 prefill 8 x 2048", 16, 4, 256, 8, 2048, 2048, 2},
       }) {
    if (std::string_view(c.name).find(wanted) != std::string_view::npos) Bench(op, c).run();
  }
}
