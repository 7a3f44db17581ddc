// What share of the memory's pace do a model's products reach? All products of a step, in a CUDA
// graph as the engine runs them but without what stands between, and each shape of product by
// itself; a model's weights are far larger than L2. By hand:
//   linear_bench [MODEL [ROWS...]]   part of a model's name; up to 2048 rows
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "ops/linear_cuda.h"

namespace inferno::ops::cuda {
namespace {

constexpr double kPeakBytes = 4.54e12;  // plain reads of the H200, measured
constexpr double kPeakFlops = 800e12;   // bf16, cuBLAS 8192 x 8192 x 8192, measured
constexpr int kGraphLaunches = 10;
constexpr int kRounds = 7;

struct Model {
  const char* name;
  std::uint32_t num_layers, hidden_size, qkv_size, intermediate_size, vocab_size;
};

constexpr Model kModels[] = {{"Llama-3.1-8B", 32, 4096, 6144, 14336, 128256},
                             {"Llama-2-7B", 32, 4096, 12288, 11008, 32000},
                             {"Llama-3.2-1B", 16, 2048, 3072, 8192, 128256}};
constexpr std::uint32_t kMaxTokens = 2048;

__global__ void fill_kernel(__nv_bfloat16* values, std::size_t count, float scale) {
  std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i < count; i += std::size_t{gridDim.x} * blockDim.x) {
    std::uint64_t bits = (i + 1) * 0x9E3779B97F4A7C15ULL;
    bits ^= bits >> 29;
    bits *= 0xBF58476D1CE4E5B9ULL;
    const float unit = static_cast<float>(bits >> 40) * 0x1p-23F - 1.0F;
    values[i] = __float2bfloat16_rn(unit * scale);
  }
}

template <typename T>
class Array {
 public:
  explicit Array(std::size_t size) : size_(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), "cudaMalloc");
    check(cudaMemset(data_, 0, size * sizeof(T)), "cudaMemset");
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* data() const { return data_; }
  void fill(float scale) { fill_kernel<<<1056, 512>>>(data_, size_, scale); }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

struct Layer {
  DeviceMatrix qkv, o, gate_up, down;
};

// A model's weights in one array, and what its products read and write.
struct Buffers {
  explicit Buffers(const Model& m)
      : model(m),
        weights(num_weights(m)),
        h(std::size_t{kMaxTokens} * m.hidden_size),
        qkv(std::size_t{kMaxTokens} * m.qkv_size),
        scratch(std::size_t{kMaxTokens} * 2 * m.intermediate_size),
        gated(std::size_t{kMaxTokens} * m.intermediate_size),
        x(std::size_t{kMaxTokens} * m.hidden_size),
        norm_weight(m.hidden_size),
        sums(std::size_t{kMaxTokens} * norm_parts(m.hidden_size)),
        logits(std::size_t{256} * m.vocab_size) {
    weights.fill(0.02F);
    h.fill(1.0F);
    qkv.fill(1.0F);
    gated.fill(1.0F);
    const __nv_bfloat16* at = weights.data();
    const auto matrix = [&](std::uint32_t rows, std::uint32_t columns) {
      const DeviceMatrix result{at, rows, columns, Dtype::BF16};
      at += std::size_t{rows} * columns;
      return result;
    };
    for (std::uint32_t i = 0; i < m.num_layers; ++i) {
      const DeviceMatrix qkv_weight = matrix(m.qkv_size, m.hidden_size);
      const DeviceMatrix o = matrix(m.hidden_size, m.hidden_size);
      const DeviceMatrix gate_up = matrix(2 * m.intermediate_size, m.hidden_size);
      layers.push_back({qkv_weight, o, gate_up, matrix(m.hidden_size, m.intermediate_size)});
    }
    lm_head = matrix(m.vocab_size, m.hidden_size);
  }

  static std::size_t num_weights(const Model& m) {
    const std::size_t layer = m.qkv_size + m.hidden_size + 3 * std::size_t{m.intermediate_size};
    return (layer * m.num_layers + m.vocab_size) * m.hidden_size;
  }

  Model model;
  Array<__nv_bfloat16> weights, h, qkv, scratch, gated;
  Array<float> x, norm_weight, sums, logits;
  std::vector<Layer> layers;
  DeviceMatrix lm_head;
};

class Bench {
 public:
  Bench() : workspace_(LinearCuda::workspace_bytes()) {
    int num_sms = 0;
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0), "attribute");
    check(cudaStreamCreateWithFlags(&op_.stream, cudaStreamNonBlocking), "cudaStreamCreate");
    op_.num_sms = static_cast<std::uint32_t>(num_sms);
    op_.dependent_launch = true;
    linear_ = std::make_unique<LinearCuda>(op_, workspace_.data());
  }

  void run(const Buffers& buffers, std::uint32_t num_tokens) {
    const Model& model = buffers.model;
    Step step{buffers, num_tokens};
    const double chain = time([&] { all(step); });
    report(model.name, "all", num_tokens, chain, buffers.num_weights(model));
    const auto one = [&](const char* name, DeviceMatrix Layer::*weight, auto product) {
      const double us = time([&] {
        for (const Layer& layer : buffers.layers) (this->*product)(step, layer);
      });
      const DeviceMatrix& matrix = buffers.layers[0].*weight;
      report(model.name, name, num_tokens, us / model.num_layers,
             std::size_t{matrix.num_rows} * matrix.num_columns);
    };
    one("qkv", &Layer::qkv, &Bench::qkv);
    one("o", &Layer::o, &Bench::o);
    one("gate_up", &Layer::gate_up, &Bench::gate);
    one("down", &Layer::down, &Bench::down);
    const double us = time([&] {
      for (int i = 0; i < 4; ++i) lm_head(step);
    });
    report(model.name, "lm_head", num_tokens, us / 4,
           std::size_t{model.vocab_size} * model.hidden_size);
  }

 private:
  struct Step {
    const Buffers& buffers;
    std::uint32_t num_tokens;
    bool deferred = false;
  };

  static LinearInput normed(const Step& step) {
    return {step.buffers.h.data(), step.num_tokens,
            step.deferred ? step.buffers.sums.data() : nullptr, 1e-5F};
  }
  void add(Step& step, const __nv_bfloat16* h, const DeviceMatrix& weight) {
    const Buffers& b = step.buffers;
    step.deferred = linear_->add(op_, {h, step.num_tokens, nullptr, 0}, weight, nullptr, b.x.data(),
                                 {b.norm_weight.data(), 1e-5F, b.h.data(), b.sums.data()});
  }
  void qkv(Step& step, const Layer& layer) {
    linear_->store(op_, normed(step), layer.qkv, nullptr, step.buffers.qkv.data());
  }
  void o(Step& step, const Layer& layer) { add(step, step.buffers.qkv.data(), layer.o); }
  void gate(Step& step, const Layer& layer) {
    linear_->gate(op_, normed(step), layer.gate_up, nullptr, step.buffers.scratch.data(),
                  step.buffers.gated.data());
  }
  void down(Step& step, const Layer& layer) { add(step, step.buffers.gated.data(), layer.down); }
  void lm_head(Step& step) {  // the engine asks for as many rows as there are sequences
    LinearInput in = normed(step);
    in.num_tokens = std::min(in.num_tokens, 256U);
    linear_->store_f32(op_, in, step.buffers.lm_head, nullptr, step.buffers.logits.data());
  }
  void all(Step& step) {
    for (const Layer& layer : step.buffers.layers) {
      qkv(step, layer);
      o(step, layer);
      gate(step, layer);
      down(step, layer);
    }
    lm_head(step);
  }

  // Median microseconds of what `launches` launches.
  double time(const std::function<void()>& launches) {
    launches();  // what is found out on first use
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(op_.stream, cudaStreamCaptureModeThreadLocal), "capture");
    launches();
    check(cudaStreamEndCapture(op_.stream, &graph), "capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    std::vector<float> times;
    for (int round = 0; round <= kRounds; ++round) {
      cudaEventRecord(begin, op_.stream);
      for (int i = 0; i < kGraphLaunches; ++i) cudaGraphLaunch(executable, op_.stream);
      cudaEventRecord(end, op_.stream);
      check(cudaEventSynchronize(end), "cudaEventSynchronize");
      float ms = 0;
      cudaEventElapsedTime(&ms, begin, end);
      if (round > 0) times.push_back(ms * 1000 / kGraphLaunches);
    }
    std::sort(times.begin(), times.end());
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    return times[times.size() / 2];
  }

  static void report(const char* model, const char* name, std::uint32_t num_tokens, double us,
                     std::size_t num_weights) {
    const double bytes_per_second = num_weights * 2.0 / us * 1e6;
    const double flops = num_weights * 2.0 * num_tokens / us * 1e6;
    std::printf("%-13s %-8s T %4u  %9.2f us  %7.0f GB/s %5.1f %%  %6.1f TFLOP/s %5.1f %%\n", model,
                name, num_tokens, us, bytes_per_second / 1e9, bytes_per_second / kPeakBytes * 100,
                flops / 1e12, flops / kPeakFlops * 100);
    std::fflush(stdout);
  }

  CudaOp op_{};
  Array<std::byte> workspace_;
  std::unique_ptr<LinearCuda> linear_;
};

// Host time of one call outside of a graph.
void time_calls() {
  CudaOp op{nullptr, 132, true};
  Array<std::byte> workspace(LinearCuda::workspace_bytes());
  Array<__nv_bfloat16> arrays(64 * 1024);
  LinearCuda linear(op, workspace.data());
  const DeviceMatrix weight{arrays.data(), 64, 64, Dtype::BF16};
  constexpr int kCalls = 2000;
  for (int round = 0; round < 2; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) {
      linear.store(op, {arrays.data() + 8192, 1, nullptr, 0}, weight, nullptr,
                   arrays.data() + 16384);
    }
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
    std::printf("a call outside of a graph: %.2f us\n", us.count() / kCalls);
  }
}

}  // namespace
}  // namespace inferno::ops::cuda

int main(int argc, char** argv) {
  using namespace inferno::ops::cuda;
  const char* wanted = argc > 1 ? argv[1] : "Llama";
  std::vector<std::uint32_t> rows;
  for (int i = 2; i < argc; ++i) rows.push_back(std::strtoul(argv[i], nullptr, 10));
  if (rows.empty()) rows = {1, 8, 16, 32, 64, 256};
  time_calls();
  Bench bench;
  for (const Model& model : kModels) {
    if (std::strstr(model.name, wanted) == nullptr) continue;
    const Buffers buffers(model);
    for (const std::uint32_t num_tokens : rows) bench.run(buffers, num_tokens);
  }
}
