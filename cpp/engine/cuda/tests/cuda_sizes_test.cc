// Goal: what a GPU reads is known without one. Method: formats and shapes alone.
#include <doctest/doctest.h>

#include <optional>

#include "engine/base/error.h"
#include "engine/cuda/cuda_backend.h"
#include "engine/spec/llama_spec.h"
#include "engine/testing/test_model.h"

namespace inferno::engine {
namespace {

using ops::WeightKind;

constexpr WeightFormat kInt4{WeightKind::Int4, 128};

TEST_CASE("GPU: codes are read by products of one matrix only") {
  const CudaSizes sizes;
  for (const WeightFormat& format : {WeightFormat{WeightKind::Fp8}, kInt4}) {
    CHECK(sizes.reads(MatrixRole::Linear, format));
    CHECK(!sizes.reads(MatrixRole::Experts, format));
    CHECK(!sizes.reads(MatrixRole::Embedding, format));
  }
  CHECK(!sizes.reads(MatrixRole::Linear, {WeightKind::Int8, 16}));
}

TEST_CASE("GPU: codes want a card that has kernels for them, before they are copied") {
  const ModelLimits limits{.block_size = 16,
                           .kv_bytes = 1 << 20,
                           .max_batch_size = 1,
                           .max_step_tokens = 16,
                           .max_seq_len = 16};
  const auto check = [&](bool has_code_kernels, std::optional<WeightFormat> format) {
    LlamaShape shape = test::small_shape(ops::Dtype::BF16);
    shape.head_dim = 64;
    shape.intermediate_size = 128;
    shape.linear_format = format;
    CudaSizes(has_code_kernels).check(spec_of(shape), limits);
  };
  check(true, kInt4);
  check(false, std::nullopt);
  CHECK_THROWS_WITH_AS(check(false, kInt4), doctest::Contains("compute capability 9.0"), Error);
}

}  // namespace
}  // namespace inferno::engine
