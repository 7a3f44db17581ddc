// What share of the memory's pace do a model's products reach? All products of a step, in a CUDA
// graph as the engine runs them but without what stands between, and each shape of product by
// itself; a model's weights are far larger than L2. Then what other cards and models with biases
// have: the plain kernel for few rows, and the bias after a product of many.
//   linear_bench [PART OF A MODEL'S NAME [FORMAT] [ROWS...]]   up to 2048 rows; FORMAT of the
//   layers' matrices: bf16, fp8, int8, int4 (groups of 128) or mxfp4
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "lab/support/ceilings.h"
#include "lab/support/formats.h"
#include "lab/support/gpu_bench.h"
#include "ops/linear/cuda/code_layout.h"
#include "ops/linear/cuda/linear_cuda.h"
#include "ops/linear/cuda/linear_fixups.h"
#include "ops/linear/cuda/linear_product.h"

namespace inferno::lab {
namespace {

using namespace ops::cuda;
using ops::Dtype;
using ops::WeightFormat;

struct Model {
  const char* name;
  std::uint32_t num_layers, hidden_size, qkv_size, intermediate_size, vocab_size;

  std::size_t num_weights() const {
    const std::size_t layer = qkv_size + hidden_size + 3 * std::size_t{intermediate_size};
    return (layer * num_layers + vocab_size) * hidden_size;
  }
};

constexpr Model kModels[] = {{"Llama-3.1-8B", 32, 4096, 6144, 14336, 128256},
                             {"Llama-2-7B", 32, 4096, 12288, 11008, 32000},
                             {"Llama-3.2-1B", 16, 2048, 3072, 8192, 128256}};
constexpr std::uint32_t kMaxTokens = 2048;
constexpr std::uint32_t kMaxLogits = 256;  // the engine asks for as many as there are sequences

// Per second.
struct Ceilings {
  double bytes_read, bytes_copied, operations;
};

struct Layer {
  DeviceMatrix qkv, o, gate_up, down;
};

std::size_t matrix_bytes(const DeviceMatrix& matrix) {
  const std::size_t weights = std::size_t{matrix.num_rows} * matrix.num_columns;
  if (!matrix.format.is_quantized()) return weights * sizeof(Bf16);
  return CodeLayout({matrix.num_rows, matrix.num_columns, matrix.format}).bytes;
}

// A model's weights in one array, and what its products read and write. Codes and their scales are
// bytes like any others: no time depends on them.
struct Buffers {
  Buffers(const Gpu& gpu, const Model& m, const WeightFormat& format)
      : model(m),
        weights(uniform_array(gpu, m.num_weights(), 0.02F)),
        h(uniform_array(gpu, std::size_t{kMaxTokens} * m.hidden_size)),
        qkv(uniform_array(gpu, std::size_t{kMaxTokens} * m.qkv_size)),
        scratch(std::size_t{kMaxTokens} * 2 * m.intermediate_size),
        gated(uniform_array(gpu, std::size_t{kMaxTokens} * m.intermediate_size)),
        x(std::size_t{kMaxTokens} * m.hidden_size),
        norm_weight(m.hidden_size),
        bias(2 * std::size_t{m.intermediate_size}),
        sums(std::size_t{kMaxTokens} * norm_parts(m.hidden_size)),
        logits(std::size_t{kMaxLogits} * m.vocab_size) {
    const auto* at = reinterpret_cast<const std::byte*>(weights.data());
    WeightFormat form = format;
    const auto matrix = [&](std::uint32_t rows, std::uint32_t columns) {
      const DeviceMatrix result{at, rows, columns, form};
      at += matrix_bytes(result);
      return result;
    };
    for (std::uint32_t i = 0; i < m.num_layers; ++i) {
      const DeviceMatrix qkv_weight = matrix(m.qkv_size, m.hidden_size);
      const DeviceMatrix o = matrix(m.hidden_size, m.hidden_size);
      const DeviceMatrix gate_up = matrix(2 * m.intermediate_size, m.hidden_size);
      layers.push_back({qkv_weight, o, gate_up, matrix(m.hidden_size, m.intermediate_size)});
    }
    form = Dtype::BF16;
    lm_head = matrix(m.vocab_size, m.hidden_size);
  }

  std::size_t bytes() const {
    std::size_t sum = matrix_bytes(lm_head);
    for (const Layer& layer : layers) {
      for (const DeviceMatrix& one : {layer.qkv, layer.o, layer.gate_up, layer.down}) {
        sum += matrix_bytes(one);
      }
    }
    return sum;
  }

  Model model;
  DeviceArray<Bf16> weights, h, qkv, scratch, gated;
  DeviceArray<float> x, norm_weight, bias, sums, logits;
  std::vector<Layer> layers;
  DeviceMatrix lm_head;
};

// A step's products, by LinearCuda as the engine calls it.
class Products {
 public:
  Products(const CudaOp& op, LinearCuda& linear, const Buffers& buffers, std::uint32_t num_tokens)
      : op_(op), linear_(linear), b_(buffers), num_tokens_(num_tokens) {}

  void qkv(const Layer& layer) { linear_.store(op_, normed(), layer.qkv, nullptr, b_.qkv.data()); }
  void o(const Layer& layer) { add(b_.qkv.data(), layer.o); }
  void gate(const Layer& layer) {
    linear_.gate(op_, normed(), layer.gate_up, nullptr, {{}, b_.scratch.data(), b_.gated.data()});
  }
  void down(const Layer& layer) { add(b_.gated.data(), layer.down); }
  void lm_head() {
    LinearInput in = normed();
    in.num_tokens = std::min(in.num_tokens, kMaxLogits);
    linear_.store_f32(op_, in, b_.lm_head, nullptr, b_.logits.data());
  }
  void all() {
    for (const Layer& layer : b_.layers) {
      qkv(layer);
      o(layer);
      gate(layer);
      down(layer);
    }
    lm_head();
  }

 private:
  LinearInput normed() const {
    return {b_.h.data(), num_tokens_, deferred_ ? b_.sums.data() : nullptr, 1e-5F, Dtype::BF16};
  }
  void add(const Bf16* h, const DeviceMatrix& weight) {
    const NextNorm next{b_.norm_weight.data(), 1e-5F, b_.h.data(), b_.sums.data()};
    deferred_ = linear_.add(op_, {.h = h, .num_tokens = num_tokens_}, weight, nullptr,
                            {b_.x.data(), 1, next});
  }

  const CudaOp& op_;
  LinearCuda& linear_;
  const Buffers& b_;
  std::uint32_t num_tokens_;
  bool deferred_ = false;
};

// What a line is about.
struct Row {
  const char* model;
  const char* name;
  std::uint32_t num_tokens;
};

class Bench {
 public:
  Bench(const Gpu& gpu, const Ceilings& ceilings)
      : gpu_(gpu),
        ceilings_(ceilings),
        workspace_(LinearCuda::workspace_bytes(true)),
        linear_(gpu.op(), workspace_.data()) {}

  void run(const Buffers& buffers, std::uint32_t num_tokens) {
    const Model& model = buffers.model;
    Products products(gpu_.op(), linear_, buffers, num_tokens);
    const double all_us = gpu_.median_us([&] { products.all(); });
    const std::size_t lm_head = std::size_t{model.vocab_size} * model.hidden_size;
    const std::uint32_t num_logits = std::min(num_tokens, kMaxLogits);
    const double in_layers = 2.0 * (model.num_weights() - lm_head) * num_tokens;
    const double in_lm_head = 2.0 * lm_head * num_logits;
    report({model.name, "all", num_tokens}, all_us, buffers.bytes(), in_layers + in_lm_head);
    const auto one = [&](const char* name, DeviceMatrix Layer::*weight, auto product) {
      layers(buffers, name, weight, num_tokens,
             [&](const Layer& layer) { (products.*product)(layer); });
    };
    one("qkv", &Layer::qkv, &Products::qkv);
    one("o", &Layer::o, &Products::o);
    one("gate_up", &Layer::gate_up, &Products::gate);
    one("down", &Layer::down, &Products::down);
    const double us = gpu_.median_us([&] {
      for (int i = 0; i < 4; ++i) products.lm_head();
    });
    report({model.name, "lm_head", num_logits}, us / 4, lm_head * sizeof(Bf16), in_lm_head);
    if (buffers.layers[0].qkv.format.is_quantized()) return;
    if (num_tokens <= kMaxFewRows) {
      plain(buffers, num_tokens);
    } else {
      add_bias(buffers, num_tokens);
    }
  }

  // Host time of one call outside of a graph.
  void time_calls() {
    const DeviceArray<Bf16> arrays(64 * 1024);
    const DeviceMatrix weight{arrays.data(), 64, 64, Dtype::BF16};
    constexpr int kCalls = 2000;
    for (int round = 0; round < 2; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; ++i) {
        linear_.store(gpu_.op(), {.h = arrays.data() + 8192, .num_tokens = 1}, weight, nullptr,
                      arrays.data() + 16384);
      }
      gpu_.wait();
      const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
      std::printf("a call outside of a graph: %.2f us\n", us.count() / kCalls);
    }
  }

 private:
  // One product of every layer.
  template <typename Product>
  void layers(const Buffers& buffers, const char* name, DeviceMatrix Layer::*weight,
              std::uint32_t num_tokens, const Product& product) const {
    const double us = gpu_.median_us([&] {
      for (const Layer& layer : buffers.layers) product(layer);
    });
    const DeviceMatrix& matrix = buffers.layers[0].*weight;
    const std::size_t num_weights = std::size_t{matrix.num_rows} * matrix.num_columns;
    report({buffers.model.name, name, num_tokens}, us / buffers.model.num_layers,
           matrix_bytes(matrix), 2.0 * num_weights * num_tokens);
  }

  // The kernel of the cards before Hopper, which this one has beside its own.
  void plain(const Buffers& b, std::uint32_t num_tokens) const {
    const auto one = [&](const char* name, DeviceMatrix Layer::*weight, const Bf16* h) {
      layers(b, name, weight, num_tokens, [&](const Layer& layer) {
        few_rows_plain(gpu_.op(), {.in = {.h = h, .num_tokens = num_tokens},
                                   .weight = layer.*weight,
                                   .out = b.scratch.data()});
      });
    };
    one("qkv, plain", &Layer::qkv, b.h.data());
    one("down, plain", &Layer::down, b.gated.data());
  }

  // Of the widest product. Its rows are in L2 there, too, up to a few thousand: the product before
  // has just written them.
  void add_bias(const Buffers& b, std::uint32_t num_tokens) const {
    constexpr int kChain = 50;
    const std::uint32_t num_outputs = 2 * b.model.intermediate_size;
    const double us = gpu_.median_us([&] {
      for (int i = 0; i < kChain; ++i) {
        add_bias_cuda(gpu_.op(), {.bias = b.bias.data(),
                                  .num_tokens = num_tokens,
                                  .num_outputs = num_outputs,
                                  .dtype = Dtype::BF16,
                                  .y = b.scratch.data()});
      }
    }) / kChain;
    const double rate = 4.0 * num_tokens * num_outputs / us * 1e6;
    std::printf("%-13s %-11s T %4u  %9.2f us  %7.0f GB/s %5.1f %% of copy\n", b.model.name,
                "add_bias", num_tokens, us, rate / 1e9, rate / ceilings_.bytes_copied * 100);
    std::fflush(stdout);
  }

  void report(const Row& row, double us, std::size_t bytes, double operations) const {
    const double bytes_s = static_cast<double>(bytes) / us * 1e6;
    const double operations_s = operations / us * 1e6;
    std::printf(
        "%-13s %-11s T %4u  %9.2f us  %7.0f GB/s %5.1f %% of read  %6.1f TFLOP/s %5.1f %%\n",
        row.model, row.name, row.num_tokens, us, bytes_s / 1e9,
        bytes_s / ceilings_.bytes_read * 100, operations_s / 1e12,
        operations_s / ceilings_.operations * 100);
    std::fflush(stdout);
  }

  const Gpu& gpu_;
  Ceilings ceilings_;
  DeviceArray<std::byte> workspace_;
  LinearCuda linear_;
};

std::uint32_t rows_from(const char* argument) {
  const unsigned long rows = std::strtoul(argument, nullptr, 10);
  if (rows == 0 || rows > kMaxTokens) {
    throw std::invalid_argument("linear_bench: expected 1 to " + std::to_string(kMaxTokens) +
                                " rows, got " + argument);
  }
  return static_cast<std::uint32_t>(rows);
}

void run(int argc, char** argv) {
  const std::string_view wanted = argc > 1 ? argv[1] : "";
  std::vector<std::uint32_t> rows;
  const auto format = argc > 2 ? kFormats.find(argv[2]) : kFormats.end();
  const bool named = format != kFormats.end();
  for (int i = named ? 3 : 2; i < argc; ++i) rows.push_back(rows_from(argv[i]));
  if (rows.empty()) rows = {1, 8, 16, 32, 64, 256, 2048};
  const Gpu gpu;
  const double bytes_read = print_read_ceiling(gpu);
  const double bytes_copied = print_copy_ceiling(gpu);
  Bench bench(gpu, {bytes_read, bytes_copied, print_product_ceiling(gpu)});
  bench.time_calls();
  for (const Model& model : kModels) {
    if (std::string_view(model.name).find(wanted) == std::string_view::npos) continue;
    const Buffers buffers(gpu, model, named ? format->second : Dtype::BF16);
    for (const std::uint32_t num_tokens : rows) bench.run(buffers, num_tokens);
  }
}

}  // namespace
}  // namespace inferno::lab

int main(int argc, char** argv) {
  return inferno::lab::run_bench([&] { inferno::lab::run(argc, argv); });
}
