// Expert by expert: the tokens that chose it are gathered, go through its products together, and
// what comes out is added to their rows. As experts go up, so does the order of each row's sum.
#include "ops/experts/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ops/glu/glu.h"
#include "ops/linear/linear.h"

namespace inferno::ops {
namespace {

// Rows that go through an expert together. More would not make its weights cheaper, which are read
// once for so many; and no row's bits depend on it.
constexpr std::uint32_t kGroupRows = 256;
// Moving fewer floats than this is not worth waking a thread.
constexpr std::size_t kMovedPerChunk = 32768;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// The workspace, cut.
struct Scratch {
  std::uint32_t* starts = nullptr;  // [E + 1] where each expert's pairs begin
  std::uint32_t* pairs = nullptr;   // [T, k] token * k + choice, expert by expert
  float* rows = nullptr;            // [kGroupRows, H] of h, then what down gives
  float* gate_up = nullptr;         // [kGroupRows, 2, I]
  float* gated = nullptr;           // [kGroupRows, I]
  std::size_t bytes = 0;            // of all these

  Scratch(std::byte* base, const ExpertsShape& shape, std::size_t num_tokens) {
    const std::size_t group = std::min<std::size_t>(num_tokens, kGroupRows);
    const auto place = [&](auto*& array, std::size_t length) {
      if (base != nullptr) array = reinterpret_cast<decltype(&*array)>(base + bytes);
      bytes += aligned(length * sizeof(*array));
    };
    place(starts, std::size_t{shape.num_experts} + 1);
    place(pairs, num_tokens * shape.experts_per_token);
    place(rows, group * shape.hidden_size);
    place(gate_up, group * 2 * shape.intermediate_size);
    place(gated, group * shape.intermediate_size);
  }
};

// A counting sort of the pairs by expert; a token's place among its expert's follows its number.
void sort_pairs(const ExpertsArgs& args, const Scratch& scratch) {
  const std::uint32_t num_experts = args.shape.num_experts;
  const std::uint32_t num_pairs = args.num_tokens * args.shape.experts_per_token;
  std::uint32_t* starts = scratch.starts;
  std::fill_n(starts, num_experts + 1, 0);
  for (std::uint32_t pair = 0; pair < num_pairs; ++pair) {
    const std::uint32_t expert = args.expert_ids[pair];
    if (expert >= num_experts) {
      throw std::invalid_argument("invalid_batch: expert " + std::to_string(expert) +
                                  ", expected one below " + std::to_string(num_experts));
    }
    ++starts[expert];
  }
  std::uint32_t end = 0;
  for (std::uint32_t expert = 0; expert <= num_experts; ++expert) end = starts[expert] += end;
  for (std::uint32_t pair = num_pairs; pair-- > 0;) {
    scratch.pairs[--starts[args.expert_ids[pair]]] = pair;
  }
}

template <typename Fn>
void for_each_row(const OpContext& context, std::uint32_t num_rows, std::size_t width, Fn fn) {
  const auto step =
      static_cast<std::uint32_t>(kMovedPerChunk / std::max<std::size_t>(1, width) + 1);
  context.threads.parallel_for((num_rows + step - 1) / step,
                               [&](std::uint32_t chunk, std::uint32_t) {
                                 const std::uint32_t end = std::min(num_rows, (chunk + 1) * step);
                                 for (std::uint32_t row = chunk * step; row < end; ++row) fn(row);
                               });
}

// One expert and up to kGroupRows of its pairs.
struct Group {
  std::uint32_t expert;
  const std::uint32_t* pairs;
  std::uint32_t num_rows;
};

void multiply(const OpContext& context, const ExpertMatrix& matrix, const Group& group,
              const float* x, float* out) {
  const PackedWeights weights{matrix.data + group.expert * matrix.expert_stride, matrix.shape};
  const float* bias = matrix.bias == nullptr
                          ? nullptr
                          : matrix.bias + std::size_t{group.expert} * matrix.shape.num_rows;
  linear(context, {x, group.num_rows, weights, bias, out, false});
}

void run_group(const OpContext& context, const ExpertsArgs& args, const Scratch& scratch,
               const Group& group) {
  const std::size_t width = args.shape.hidden_size;
  const std::uint32_t k = args.shape.experts_per_token;
  for_each_row(context, group.num_rows, width, [&](std::uint32_t row) {
    std::memcpy(scratch.rows + row * width, args.h + group.pairs[row] / k * width,
                width * sizeof(float));
  });
  multiply(context, args.experts.gate_up, group, scratch.rows, scratch.gate_up);
  glu(context, {scratch.gate_up, group.num_rows, args.shape.intermediate_size,
                args.experts.activation, scratch.gated});
  multiply(context, args.experts.down, group, scratch.gated, scratch.rows);
  for_each_row(context, group.num_rows, width, [&](std::uint32_t row) {
    const float weight = args.scale * args.weights[group.pairs[row]];
    const float* from = scratch.rows + row * width;
    float* y = args.y + group.pairs[row] / k * width;
    for (std::size_t i = 0; i < width; ++i) y[i] += weight * from[i];
  });
}

void check_args(const ExpertsArgs& args) {
  const ExpertsShape& shape = args.shape;
  const auto check = [](const char* name, const ExpertMatrix& matrix, std::uint32_t rows,
                        std::uint32_t columns) {
    if (matrix.shape.num_rows == rows && matrix.shape.num_columns == columns &&
        matrix.expert_stride % kAlignment == 0) {
      return;
    }
    throw std::invalid_argument(
        std::string("other: experts: ") + name + " of " + std::to_string(matrix.shape.num_rows) +
        " x " + std::to_string(matrix.shape.num_columns) + ", expected " + std::to_string(rows) +
        " x " + std::to_string(columns) + ", experts a multiple of 64 bytes apart");
  };
  check("gate_up", args.experts.gate_up, 2 * shape.intermediate_size, shape.hidden_size);
  check("down", args.experts.down, shape.hidden_size, shape.intermediate_size);
}

}  // namespace

std::size_t experts_workspace_bytes(const ExpertsShape& shape, std::uint32_t max_tokens,
                                    std::uint32_t num_threads) noexcept {
  return Scratch(nullptr, shape, max_tokens).bytes +
         linear_workspace_bytes(std::min(max_tokens, kGroupRows),
                                std::max(shape.hidden_size, shape.intermediate_size), num_threads);
}

void experts(const OpContext& context, const ExpertsArgs& args) {
  if (args.num_tokens == 0) return;
  check_args(args);
  const std::uint32_t num_threads = context.threads.num_threads();
  if (context.workspace.size() <
      experts_workspace_bytes(args.shape, args.num_tokens, num_threads)) {
    throw std::invalid_argument("other: experts: the workspace is too small");
  }
  const Scratch scratch(context.workspace.data(), args.shape, args.num_tokens);
  const OpContext inner{context.threads, context.isa, context.workspace.subspan(scratch.bytes)};
  sort_pairs(args, scratch);
  if (!args.accumulate) {
    std::fill_n(args.y, std::size_t{args.num_tokens} * args.shape.hidden_size, 0.0F);
  }
  for (std::uint32_t expert = 0; expert < args.shape.num_experts; ++expert) {
    const std::uint32_t end = scratch.starts[expert + 1];
    for (std::uint32_t at = scratch.starts[expert]; at < end; at += kGroupRows) {
      run_group(inner, args, scratch, {expert, scratch.pairs + at, std::min(kGroupRows, end - at)});
    }
  }
}

}  // namespace inferno::ops
