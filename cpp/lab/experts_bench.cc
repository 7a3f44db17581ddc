// What share of the card's ceilings does a mixture of experts reach? The router's choice and the
// experts of several layers, whose weights are far larger than L2, in a CUDA graph as the engine
// runs them; and the two products by themselves. Read are the matrices of experts that somebody
// chose; a floor is the longer of reading these once and multiplying at the measured rate. Of the
// largest batches each kernel by itself, too.
//   experts_bench [PART OF A MODEL'S NAME [TOKENS...]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lab/support/ceilings.h"
#include "lab/support/gpu_bench.h"
#include "ops/experts/cuda/experts_cuda.h"
#include "ops/experts/cuda/experts_product.h"

namespace inferno::lab {
namespace {

using namespace ops;
using namespace ops::cuda;

struct Model {
  const char* name;
  ExpertsShape shape;
  RouterKind router;
  bool bias;
  Activation activation;
  std::uint32_t num_layers;  // of this benchmark
};

constexpr Model kModels[] = {
    {"Qwen3-30B-A3B", {128, 8, 2048, 768}, RouterKind::SoftmaxTopK, false, {}, 8},
    {"Mixtral-8x7B", {8, 2, 4096, 14336}, RouterKind::SoftmaxTopK, false, {}, 4},
    {"gpt-oss-20b",
     {32, 4, 2880, 2880},
     RouterKind::TopKSoftmax,
     true,
     {ActivationKind::ClampedSilu, 1.702F, 7.0F},
     6}};
constexpr std::uint32_t kMaxTokens = 8192;
constexpr std::uint32_t kTokensOfParts = 2048;  // from so many on parts are timed

// Per second.
struct Ceilings {
  double bytes_read, operations;
};

struct Buffers {
  Buffers(const Gpu& gpu, const Model& m)
      : model(m),
        expert_size(std::size_t{3} * m.shape.hidden_size * m.shape.intermediate_size),
        weights(uniform_array(gpu, expert_size * m.shape.num_experts * m.num_layers, 0.02F)),
        h(uniform_array(gpu, std::size_t{kMaxTokens} * m.shape.hidden_size)),
        x(std::size_t{kMaxTokens} * m.shape.hidden_size),
        norm_weight(std::vector<float>(m.shape.hidden_size, 1.0F)),
        sums(std::size_t{kMaxTokens} * norm_parts(m.shape.hidden_size)),
        bias(std::size_t{m.shape.num_experts} * 2 *
             std::max(m.shape.intermediate_size, m.shape.hidden_size)),
        logits(std::size_t{kMaxTokens} * m.shape.num_experts * m.num_layers),
        ids(std::size_t{kMaxTokens} * m.shape.experts_per_token),
        choice_weights(ids.size()),
        workspace(ExpertsCuda::workspace_bytes(m.shape, kMaxTokens)),
        sorted(2 * ids.size() + m.shape.num_experts + 1),
        gated(ids.size() * m.shape.intermediate_size),
        outputs(ids.size() * m.shape.hidden_size) {
    fill_normal(gpu, logits);
  }

  ExpertsWeights layer(std::uint32_t index) const {
    const ExpertsShape& s = model.shape;
    const std::size_t gate_up = std::size_t{2} * s.hidden_size * s.intermediate_size;
    const Bf16* at = weights.data() + expert_size * s.num_experts * index;
    const auto matrix = [&](const Bf16* first, std::uint32_t rows, std::uint32_t columns) {
      return ExpertMatrix{reinterpret_cast<const std::byte*>(first),
                          std::size_t{rows} * columns * 2,
                          {rows, columns, Dtype::BF16},
                          model.bias ? bias.data() : nullptr};
    };
    return {matrix(at, 2 * s.intermediate_size, s.hidden_size),
            matrix(at + gate_up * s.num_experts, s.hidden_size, s.intermediate_size),
            model.activation};
  }

  Model model;
  std::size_t expert_size;  // weights of an expert
  DeviceArray<Bf16> weights, h;
  DeviceArray<float> x, norm_weight, sums, bias, logits;
  DeviceArray<std::uint32_t> ids;
  DeviceArray<float> choice_weights;
  DeviceArray<std::byte> workspace;
  // Of parts.
  DeviceArray<std::uint32_t> sorted;
  DeviceArray<Bf16> gated, outputs;
};

// The kernels of a large batch, each by itself over all layers with one routing.
class Parts {
 public:
  Parts(const Gpu& gpu, const Buffers& buffers, std::uint32_t num_tokens)
      : gpu_(gpu),
        b_(buffers),
        tokens_(num_tokens),
        shape_(buffers.model.shape),
        routing_{b_.ids.data(), num_tokens * shape_.experts_per_token, shape_.num_experts,
                 shape_.experts_per_token},
        sorted_{b_.sorted.data() + 2 * b_.ids.size(), b_.sorted.data(),
                b_.sorted.data() + b_.ids.size()},
        tiles_(gpu.op()) {}

  void run(double product_rate) const {
    const double each = 2.0 * routing_.num_pairs * shape_.hidden_size * shape_.intermediate_size;
    const double sort = us([&](std::uint32_t) { sort_pairs_cuda(gpu_.op(), routing_, sorted_); });
    const double up = us([&](std::uint32_t layer) { product(layer, true); });
    const double down = us([&](std::uint32_t layer) { product(layer, false); });
    const double sum = us([&](std::uint32_t) { sum_outputs(); });
    std::printf(
        "%-13s T %4u: sort %.1f, gate and up %.1f (%.1f %%), down %.1f (%.1f %%), sum "
        "%.1f us\n",
        b_.model.name, tokens_, sort, up, 2 * each / product_rate / up * 1e8, down,
        each / product_rate / down * 1e8, sum);
    std::fflush(stdout);
  }

 private:
  template <typename Fn>
  double us(Fn of_layer) const {
    const std::uint32_t layers = b_.model.num_layers;
    return gpu_.median_us([&] {
      for (std::uint32_t i = 0; i < layers; ++i) of_layer(i);
    }) / layers;
  }
  void product(std::uint32_t layer, bool gate) const {
    const ExpertsWeights weights = b_.layer(layer);
    tiles_(gpu_.op(), {.routing = routing_,
                       .sorted = sorted_,
                       .routed = !gate,
                       .x = gate ? b_.h.data() : b_.gated.data(),
                       .token_rows = gate,
                       .weight = gate ? weights.gate_up : weights.down,
                       .gate = gate,
                       .activation = weights.activation,
                       .out = gate ? b_.gated.data() : b_.outputs.data()});
  }
  void sum_outputs() const {
    sum_experts_cuda(gpu_.op(), {.routing = routing_,
                                 .weights = b_.choice_weights.data(),
                                 .outputs = b_.outputs.data(),
                                 .positions = sorted_.positions,
                                 .num_tokens = tokens_,
                                 .hidden_size = shape_.hidden_size,
                                 .add = true,
                                 .x = b_.x.data(),
                                 .next = {b_.norm_weight.data(), 1e-5F, b_.h.data(), nullptr}});
  }

  const Gpu& gpu_;
  const Buffers& b_;
  std::uint32_t tokens_;
  ExpertsShape shape_;
  PairRouting routing_;
  SortedPairs sorted_;
  ExpertsTilesKernel tiles_;
};

class Bench {
 public:
  Bench(const Gpu& gpu, const Ceilings& ceilings, const Buffers& buffers)
      : gpu_(gpu),
        ceilings_(ceilings),
        b_(buffers),
        experts_(gpu.op(), buffers.model.shape, kMaxTokens, buffers.workspace.data()) {}

  void run(std::uint32_t num_tokens, bool batch_invariant) {
    experts_.set_batch_invariant(batch_invariant);
    const std::uint32_t layers = b_.model.num_layers;
    const double all_us = gpu_.median_us([&] {
      for (std::uint32_t i = 0; i < layers; ++i) {
        route(i, num_tokens);
        add(i, num_tokens);
      }
    });
    const double route_us = gpu_.median_us([&] {
      for (std::uint32_t i = 0; i < layers; ++i) route(i, num_tokens);
    });
    double chosen = 0;
    for (std::uint32_t i = 0; i < layers; ++i) chosen += num_chosen(i, num_tokens);
    chosen /= layers;
    const double us = all_us / layers;
    const double bytes = chosen * static_cast<double>(b_.expert_size) * 2;
    const double operations =
        2.0 * num_tokens * b_.model.shape.experts_per_token * static_cast<double>(b_.expert_size);
    const double read_us = bytes / ceilings_.bytes_read * 1e6;
    const double product_us = operations / ceilings_.operations * 1e6;
    std::printf(
        "%-13s T %4u%s  %8.2f us (route %5.2f)  %5.1f experts  %5.1f %% of read  %6.1f TFLOP/s "
        "%5.1f %%  %5.1f %% of the floor\n",
        b_.model.name, num_tokens, batch_invariant ? " invariant" : "", us, route_us / layers,
        chosen, read_us / us * 100, operations / us / 1e6, product_us / us * 100,
        std::max(read_us, product_us) / us * 100);
    std::fflush(stdout);
    if (num_tokens >= kTokensOfParts && !batch_invariant) {
      Parts(gpu_, b_, num_tokens).run(ceilings_.operations);
    }
  }

 private:
  void route(std::uint32_t layer, std::uint32_t num_tokens) const {
    const ExpertsShape& s = b_.model.shape;
    route_cuda(gpu_.op(), {b_.logits.data() + std::size_t{layer} * kMaxTokens * s.num_experts,
                           num_tokens,
                           {b_.model.router, s.num_experts, s.experts_per_token, true},
                           nullptr,
                           b_.ids.data(),
                           b_.choice_weights.data()});
  }
  void add(std::uint32_t layer, std::uint32_t num_tokens) {
    experts_.add(
        gpu_.op(),
        {.h = b_.h.data(),
         .num_tokens = num_tokens,
         .expert_ids = b_.ids.data(),
         .weights = b_.choice_weights.data()},
        b_.layer(layer),
        {.x = b_.x.data(), .next = {b_.norm_weight.data(), 1e-5F, b_.h.data(), b_.sums.data()}});
  }
  std::size_t num_chosen(std::uint32_t layer, std::uint32_t num_tokens) const {
    route(layer, num_tokens);
    gpu_.wait();
    std::vector<std::uint32_t> ids(std::size_t{num_tokens} * b_.model.shape.experts_per_token);
    check(cudaMemcpy(ids.data(), b_.ids.data(), ids.size() * sizeof(std::uint32_t),
                     cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    return std::set(ids.begin(), ids.end()).size();
  }

  const Gpu& gpu_;
  Ceilings ceilings_;
  const Buffers& b_;
  ExpertsCuda experts_;
};

void run(int argc, char** argv) {
  const std::string_view wanted = argc > 1 ? argv[1] : "";
  std::vector<std::uint32_t> tokens;
  for (int i = 2; i < argc; ++i) {
    tokens.push_back(std::min<std::uint32_t>(std::strtoul(argv[i], nullptr, 10), kMaxTokens));
  }
  if (tokens.empty()) tokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  const Gpu gpu;
  const double bytes_read = print_read_ceiling(gpu);
  const Ceilings ceilings{bytes_read, print_product_ceiling(gpu)};
  for (const Model& model : kModels) {
    if (std::string_view(model.name).find(wanted) == std::string_view::npos) continue;
    const Buffers buffers(gpu, model);
    Bench bench(gpu, ceilings, buffers);
    for (const std::uint32_t num_tokens : tokens) bench.run(num_tokens, false);
    for (const std::uint32_t num_tokens : {1U, 8U, 64U, 2048U}) bench.run(num_tokens, true);
  }
}

}  // namespace
}  // namespace inferno::lab

int main(int argc, char** argv) {
  return inferno::lab::run_bench([&] { inferno::lab::run(argc, argv); });
}
