#include "ops/experts/cuda/experts_cuda.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops/experts/cuda/experts_product.h"
#include "ops/rms_norm/rms_norm_cuda.h"

namespace inferno::ops::cuda {
namespace {

// From so many rows for each expert on, tiles are faster than streams.
constexpr std::uint32_t kRowsForTiles = 16;
constexpr std::size_t kElement = 2;

// The workspace, cut.
struct Arrays {
  SortedPairs sorted;
  void* gated = nullptr;    // [P, I] elements
  void* outputs = nullptr;  // [P, H] elements
  std::size_t bytes = 0;

  Arrays(void* base, const ExpertsShape& shape, std::uint32_t max_tokens) {
    const std::size_t pairs = std::size_t{max_tokens} * shape.experts_per_token;
    const auto place = [&](auto*& array, std::size_t length) {
      constexpr std::size_t kAligned = 256;
      if (base != nullptr) {
        array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(
            static_cast<std::byte*>(base) + bytes);
      }
      bytes += (length + kAligned - 1) / kAligned * kAligned;
    };
    place(sorted.starts, (std::size_t{shape.num_experts} + 1) * sizeof(std::uint32_t));
    place(sorted.order, pairs * sizeof(std::uint32_t));
    place(sorted.positions, pairs * sizeof(std::uint32_t));
    place(gated, pairs * shape.intermediate_size * kElement);
    place(outputs, pairs * shape.hidden_size * kElement);
  }
};

void check_shape(const ExpertsShape& shape) {
  check_route_rule(
      {.num_experts = shape.num_experts, .experts_per_token = shape.experts_per_token});
  if (shape.num_experts > kMaxExperts || shape.experts_per_token > kMaxExpertsPerToken ||
      shape.hidden_size % 8 != 0 || shape.hidden_size == 0 || shape.hidden_size > kMaxHiddenSize ||
      shape.intermediate_size % 8 != 0 || shape.intermediate_size == 0) {
    throw std::invalid_argument("other: experts: " + std::to_string(shape.experts_per_token) +
                                " of " + std::to_string(shape.num_experts) +
                                " experts, hidden size " + std::to_string(shape.hidden_size) +
                                ", intermediate size " + std::to_string(shape.intermediate_size) +
                                "; expected up to " + std::to_string(kMaxExpertsPerToken) + " of " +
                                std::to_string(kMaxExperts) +
                                ", and sizes that are multiples of 8");
  }
}

void check_matrix(const ExpertMatrix& matrix, std::uint32_t num_rows, std::uint32_t num_columns) {
  const WeightShape& shape = matrix.shape;
  if (shape.dtype() != Dtype::F16 && shape.dtype() != Dtype::BF16) {
    throw std::invalid_argument(std::string("other: experts: weights of ") +
                                dtype_name(shape.dtype()) + ", expected f16 or bf16");
  }
  if (shape.num_rows != num_rows || shape.num_columns != num_columns ||
      matrix.expert_stride % 16 != 0) {
    throw std::invalid_argument("other: experts: a matrix of " + std::to_string(shape.num_rows) +
                                " x " + std::to_string(shape.num_columns) + ", expected " +
                                std::to_string(num_rows) + " x " + std::to_string(num_columns) +
                                ", experts a multiple of 16 bytes apart");
  }
}

}  // namespace

struct ExpertsCuda::Impl {
  Impl(const CudaOp& op, const ExpertsShape& experts, std::uint32_t tokens, void* workspace)
      : shape(experts),
        max_tokens(tokens),
        arrays(workspace, experts, tokens),
        stream_kernel(op),
        decode_kernel(op),
        tiles_kernel(op) {}

  void check(const ExpertsInput& in, const ExpertsWeights& weights) const;
  bool streams() const;
  bool tiles(std::uint32_t num_tokens) const;
  bool decodes(std::uint32_t num_tokens) const;
  bool defers(std::uint32_t num_tokens, Dtype dtype) const;
  PairRouting routing_of(const ExpertsInput& in) const;
  void decode(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
              const ExpertsSum& sum) const;
  void run(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
           ExpertsSum sum) const;
  void multiply(const CudaOp& op, const ExpertsProduct& product, bool by_tiles) const;

  ExpertsShape shape;
  std::uint32_t max_tokens;
  Arrays arrays;
  ExpertsStreamKernel stream_kernel;
  ExpertsDecodeKernel decode_kernel;
  ExpertsTilesKernel tiles_kernel;
  bool batch_invariant = false;
};

void ExpertsCuda::Impl::check(const ExpertsInput& in, const ExpertsWeights& weights) const {
  check_matrix(weights.gate_up, 2 * shape.intermediate_size, shape.hidden_size);
  check_matrix(weights.down, shape.hidden_size, shape.intermediate_size);
  if (in.num_tokens > max_tokens) {
    throw std::invalid_argument("invalid_batch: experts: " + std::to_string(in.num_tokens) +
                                " tokens, expected up to " + std::to_string(max_tokens));
  }
  if (in.square_sums != nullptr && in.num_tokens > kMaxFewRows && streams() &&
      !tiles(in.num_tokens)) {
    throw std::invalid_argument("other: experts: deferred normalisation of " +
                                std::to_string(in.num_tokens) + " rows, expected up to " +
                                std::to_string(kMaxFewRows));
  }
}

bool ExpertsCuda::Impl::streams() const {
  const std::uint32_t hidden = shape.hidden_size;
  const std::uint32_t inner = shape.intermediate_size;
  return stream_kernel.available() &&
         ExpertsStreamKernel::takes({2 * inner, hidden, Dtype::BF16}) &&
         ExpertsStreamKernel::takes({hidden, inner, Dtype::BF16});
}

// Where a row is to have the same bits always, whatever their number: tiles give them.
bool ExpertsCuda::Impl::tiles(std::uint32_t num_tokens) const {
  if (!streams() || !tiles_kernel.available()) return false;
  const std::uint64_t pairs = std::uint64_t{num_tokens} * shape.experts_per_token;
  return batch_invariant ||
         (pairs >= std::uint64_t{kRowsForTiles} * shape.num_experts && num_tokens > kMaxFewRows);
}

// Its sums go another way than those of more tokens.
bool ExpertsCuda::Impl::decodes(std::uint32_t num_tokens) const {
  return streams() && decode_kernel.available() && !batch_invariant &&
         num_tokens <= kMaxDecodeTokens && num_tokens * shape.experts_per_token <= kMaxBlockPairs;
}

// x * weight, not yet divided by its norm, may leave the range of f16.
bool ExpertsCuda::Impl::defers(std::uint32_t num_tokens, Dtype dtype) const {
  return decodes(num_tokens) && dtype == Dtype::BF16 && shape.hidden_size % 16 == 0;
}

PairRouting ExpertsCuda::Impl::routing_of(const ExpertsInput& in) const {
  return {in.expert_ids, in.num_tokens * shape.experts_per_token, shape.num_experts,
          shape.experts_per_token};
}

void ExpertsCuda::Impl::decode(const CudaOp& op, const ExpertsInput& in,
                               const ExpertsWeights& weights, const ExpertsSum& sum) const {
  const PairRouting routing = routing_of(in);
  const Dtype dtype = weights.down.shape.dtype();
  const bool defers_norm = defers(in.num_tokens, dtype);
  stream_kernel(op, {.routing = routing,
                     .sorted = {},
                     .x = in.h,
                     .token_rows = true,
                     .weight = weights.gate_up,
                     .gate = true,
                     .activation = weights.activation,
                     .square_sums = in.square_sums,
                     .num_square_sums = norm_parts(shape.hidden_size),
                     .eps = in.eps,
                     .pair_weights = in.weights,
                     .out = arrays.gated});
  decode_kernel(op, {.routing = routing,
                     .weights = in.weights,
                     .gated = arrays.gated,
                     .down = weights.down,
                     .scale = sum.scale,
                     .add = sum.add,
                     .x = sum.x,
                     .next = defers_norm ? sum.next : NextNorm{}});
  if (defers_norm || sum.next.weight == nullptr) return;
  rms_norm_cuda(op, {.x = sum.x,
                     .weight = sum.next.weight,
                     .eps = sum.next.eps,
                     .num_tokens = in.num_tokens,
                     .hidden_size = shape.hidden_size,
                     .dtype = dtype,
                     .out = sum.next.h});
}

void ExpertsCuda::Impl::multiply(const CudaOp& op, const ExpertsProduct& product,
                                 bool by_tiles) const {
  if (by_tiles) {
    tiles_kernel(op, product);
  } else if (streams()) {
    stream_kernel(op, product);
  } else {
    experts_plain(op, product);
  }
}

void ExpertsCuda::Impl::run(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
                            ExpertsSum sum) const {
  if (decodes(in.num_tokens)) return decode(op, in, weights, sum);
  const bool by_tiles = tiles(in.num_tokens);
  const PairRouting routing = routing_of(in);
  const bool sorts = by_tiles || (streams() && routing.num_pairs > kMaxBlockPairs);
  const SortedPairs sorted = sorts ? arrays.sorted : SortedPairs{};
  if (sorts) sort_pairs_cuda(op, routing, sorted);
  multiply(op,
           {.routing = routing,
            .sorted = sorted,
            .x = in.h,
            .token_rows = true,
            .weight = weights.gate_up,
            .gate = true,
            .activation = weights.activation,
            .square_sums = in.square_sums,
            .num_square_sums = norm_parts(shape.hidden_size),
            .eps = in.eps,
            .out = arrays.gated},
           by_tiles);
  multiply(op,
           {.routing = routing,
            .sorted = sorted,
            .routed = true,
            .x = arrays.gated,
            .weight = weights.down,
            .activation = {},
            .out = arrays.outputs},
           by_tiles);
  sum.routing = routing;
  sum.weights = in.weights;
  sum.outputs = arrays.outputs;
  sum.positions = by_tiles ? sorted.positions : nullptr;
  sum.num_tokens = in.num_tokens;
  sum.hidden_size = shape.hidden_size;
  sum.dtype = weights.down.shape.dtype();
  sum_experts_cuda(op, sum);
}

ExpertsCuda::ExpertsCuda(const CudaOp& op, const ExpertsShape& shape, std::uint32_t max_tokens,
                         void* workspace) {
  check_shape(shape);
  impl_ = std::make_unique<Impl>(op, shape, max_tokens, workspace);
}

ExpertsCuda::~ExpertsCuda() = default;

std::size_t ExpertsCuda::workspace_bytes(const ExpertsShape& shape, std::uint32_t max_tokens) {
  return Arrays(nullptr, shape, max_tokens).bytes;
}

void ExpertsCuda::set_batch_invariant(bool on) { impl_->batch_invariant = on; }

void ExpertsCuda::store(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
                        float* y) {
  impl_->check(in, weights);
  if (in.num_tokens == 0) return;
  impl_->run(op, in, weights, {.routing = {}, .x = y, .next = {}});
}

bool ExpertsCuda::add(const CudaOp& op, const ExpertsInput& in, const ExpertsWeights& weights,
                      const ExpertsResidual& to) {
  impl_->check(in, weights);
  if (in.num_tokens == 0) return false;
  impl_->run(op, in, weights,
             {.routing = {}, .scale = to.scale, .add = true, .x = to.x, .next = to.next});
  return to.next.weight != nullptr && defers(in.num_tokens, weights.down.shape.dtype());
}

bool ExpertsCuda::defers(std::uint32_t num_tokens, Dtype dtype) const {
  return impl_->defers(num_tokens, dtype);
}

}  // namespace inferno::ops::cuda
