// For experts_cuda_test: random problems on the device, and their outputs between guards.
#pragma once

#include "ops/cuda/cuda_test_support.h"
#include "ops/experts/cuda/experts_cuda.h"
#include "ops/experts/experts_fixture.h"

namespace inferno::ops::cuda::test {

using ops::test::ExpertsAnswer;
using ops::test::ExpertsCase;
using ops::test::ExpertsProblem;
using ops::test::kActivations;
using ops::test::Random;
using ops::test::rounded;
using ops::test::same_bits;
using ops::test::Spread;

inline constexpr float kEps = 1e-5F;
inline constexpr std::size_t kGap = 24;  // elements between two experts' matrices

inline std::vector<std::uint16_t> with_gaps(const std::vector<float>& values, std::size_t experts,
                                            Dtype dtype) {
  const std::vector<std::uint16_t> dense = to_elements(values, dtype);
  const std::size_t size = dense.size() / experts;
  std::vector<std::uint16_t> result;
  for (std::size_t e = 0; e < experts; ++e) {
    result.insert(result.end(), dense.begin() + e * size, dense.begin() + (e + 1) * size);
    result.insert(result.end(), kGap, 0xFFFF);
  }
  return result;
}

// A problem whose rows are elements, here and on the device.
struct DeviceProblem {
  std::vector<float> square_sums;  // which `host` is made with
  ExpertsProblem host;
  std::vector<float> norm_weight, before;
  DeviceBuffer<std::uint16_t> h, gate_up, down;
  DeviceBuffer<float> gate_up_bias, down_bias, weights, sums, next_weight;
  DeviceBuffer<std::uint32_t> ids;
  bool deferred;

  DeviceProblem(const ExpertsCase& c, Random& random, bool defers = false)
      : host(elements(c, random, defers, square_sums)),
        norm_weight(random.normals(c.shape.hidden_size)),
        before(random.normals(std::size_t{c.tokens} * c.shape.hidden_size)),
        h(to_elements(host.h, c.dtype)),
        gate_up(with_gaps(host.gate_up, c.shape.num_experts, c.dtype)),
        down(with_gaps(host.down, c.shape.num_experts, c.dtype)),
        gate_up_bias(host.gate_up_bias),
        down_bias(host.down_bias),
        weights(host.weights),
        sums(square_sums),
        next_weight(norm_weight),
        ids(host.ids),
        deferred(defers) {}

  static ExpertsProblem elements(const ExpertsCase& c, Random& random, bool defers,
                                 std::vector<float>& square_sums) {
    ExpertsProblem problem(c, random);
    for (float& value : problem.h) value = rounded(value, c.dtype);
    const std::size_t parts = norm_parts(c.shape.hidden_size);
    square_sums = random.normals(c.tokens * parts);
    for (std::size_t t = 0; t < c.tokens && defers; ++t) {
      double sum = 0;
      for (std::size_t i = 0; i < parts; ++i) {
        float& square = square_sums[t * parts + i];
        square = square * square * static_cast<float>(c.shape.hidden_size);
        sum += square;
      }
      problem.row_scales[t] = 1.0 / std::sqrt(sum / c.shape.hidden_size + kEps);
    }
    return problem;
  }

  ExpertsWeights experts() const {
    const ExpertsCase& c = host.c;
    const WeightShape wide{2 * c.shape.intermediate_size, c.shape.hidden_size, c.dtype};
    const WeightShape narrow{c.shape.hidden_size, c.shape.intermediate_size, c.dtype};
    return {matrix(gate_up, wide, gate_up_bias), matrix(down, narrow, down_bias), c.activation};
  }
  // Tokens [first, first + count).
  ExpertsInput input(std::uint32_t first, std::uint32_t count) const {
    const std::size_t k = host.c.shape.experts_per_token;
    const std::size_t width = host.c.shape.hidden_size;
    return {.h = h.data() + first * width,
            .num_tokens = count,
            .square_sums =
                deferred ? sums.data() + first * std::size_t{norm_parts(host.c.shape.hidden_size)}
                         : nullptr,
            .eps = kEps,
            .expert_ids = ids.data() + first * k,
            .weights = weights.data() + first * k};
  }

 private:
  ExpertMatrix matrix(const DeviceBuffer<std::uint16_t>& values, const WeightShape& shape,
                      const DeviceBuffer<float>& bias) const {
    const std::size_t size = std::size_t{shape.num_rows} * shape.num_columns + kGap;
    return {reinterpret_cast<const std::byte*>(values.data()), size * 2, shape,
            host.c.bias ? bias.data() : nullptr};
  }
};

// What a call left.
struct ExpertsOutputs {
  std::vector<float> y;
  std::vector<float> next_h;  // of add
  bool deferred = false;
  std::vector<float> next_sums;
  bool guards_are_whole = false;
};

enum class Call { Store, Add };
inline constexpr float kScale = 0.75F;  // of Add

// A device with the experts of one shape.
struct ExpertsBench {
  ExpertsBench(const ExpertsShape& shape, std::uint32_t max_tokens, bool plain = false)
      : workspace(ExpertsCuda::workspace_bytes(shape, max_tokens)), op(device.op()) {
    if (plain) op.dependent_launch = false;
    experts = std::make_unique<ExpertsCuda>(op, shape, max_tokens, workspace.data());
  }

  ExpertsOutputs run(const DeviceProblem& problem, Call call, std::uint32_t first,
                     std::uint32_t count) {
    const std::size_t width = problem.host.c.shape.hidden_size;
    DeviceBuffer<float> y(count * width);
    DeviceBuffer<std::uint16_t> next_h(count * width);
    DeviceBuffer<float> next_sums(count *
                                  std::size_t{norm_parts(problem.host.c.shape.hidden_size)});
    ExpertsOutputs outputs;
    if (call == Call::Store) {
      experts->store(op, problem.input(first, count), problem.experts(), y.data());
    } else {
      y.copy_from(std::span(problem.before).subspan(first * width, count * width));
      outputs.deferred = experts->add(
          op, problem.input(first, count), problem.experts(),
          {y.data(), kScale, {problem.next_weight.data(), kEps, next_h.data(), next_sums.data()}});
    }
    device.wait();
    outputs.y = y.to_host();
    outputs.next_h = to_floats(next_h.to_host(), problem.host.c.dtype);
    outputs.next_sums = next_sums.to_host();
    outputs.guards_are_whole = y.guards_are_whole() && next_h.guards_are_whole() &&
                               next_sums.guards_are_whole() && workspace.guards_are_whole();
    return outputs;
  }

  void set_batch_invariant() {
    batch_invariant = true;
    experts->set_batch_invariant(true);
  }

  bool batch_invariant = false;
  TestDevice device;
  DeviceBuffer<std::byte> workspace;
  CudaOp op;
  std::unique_ptr<ExpertsCuda> experts;
};

inline double rounding(Dtype dtype) { return dtype == Dtype::BF16 ? 0x1p-8 : 0x1p-11; }

}  // namespace inferno::ops::cuda::test
