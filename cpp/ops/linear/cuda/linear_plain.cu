// Products of few rows with plain loads: a warp for each output, eight tokens at a time. Simple
// before fast; the devices that the node is tuned for have linear_few_rows.cu.
#include "ops/linear/cuda/linear_epilogue.cuh"

namespace inferno::ops::cuda {
namespace {

constexpr std::uint32_t kWarps = 8;
constexpr std::uint32_t kTokens = 8;  // whose sums a thread keeps at once
constexpr std::uint32_t kPack = 8;    // elements of 16 bytes

template <typename Element>
struct alignas(16) Pack {
  Element at[kPack];
};

struct PlainArgs {
  const void* weight;  // [N, K]
  const void* h;       // [T, K]
  EpilogueArgs epilogue;
};

template <typename Element>
__device__ Pack<Element> load(const void* rows, std::size_t row, std::uint32_t num_columns,
                              std::uint32_t column) {
  const Element* at = static_cast<const Element*>(rows) + row * num_columns + column;
  return *reinterpret_cast<const Pack<Element>*>(at);
}

// Products of one row of W with tokens first_token and following; every lane gets every sum.
template <typename Element>
__device__ void multiply_row(const PlainArgs& args, std::uint32_t row, std::uint32_t first_token,
                             float (&sums)[kTokens]) {
  const std::uint32_t num_columns = args.epilogue.num_columns;
  for (float& sum : sums) sum = 0.0F;
  for (std::uint32_t column = threadIdx.x % 32 * kPack; column < num_columns;
       column += 32 * kPack) {
    const auto weights = load<Element>(args.weight, row, num_columns, column);
#pragma unroll
    for (std::uint32_t t = 0; t < kTokens; ++t) {
      if (first_token + t >= args.epilogue.num_tokens) break;
      const auto h = load<Element>(args.h, first_token + t, num_columns, column);
#pragma unroll
      for (std::uint32_t i = 0; i < kPack; ++i) {
        sums[t] = fmaf(to_float(weights.at[i]), to_float(h.at[i]), sums[t]);
      }
    }
  }
  for (float& sum : sums) sum = warp_sum(sum);
}

template <typename Element>
__global__ void __launch_bounds__(kWarps * 32) few_rows_plain_kernel(const PlainArgs args) {
  wait_for_previous();
  let_next_start();
  const EpilogueArgs& epilogue = args.epilogue;
  const std::uint32_t output = blockIdx.x * kWarps + threadIdx.x / 32;
  if (output >= epilogue.num_outputs) return;
  const bool gate = epilogue.kind == Epilogue::Gate;
  for (std::uint32_t first = 0; first < epilogue.num_tokens; first += kTokens) {
    float sums[kTokens];
    float up_sums[kTokens];
    multiply_row<Element>(args, output, first, sums);
    if (gate) multiply_row<Element>(args, epilogue.num_outputs + output, first, up_sums);
#pragma unroll
    for (std::uint32_t t = 0; t < kTokens; ++t) {
      if (first + t >= epilogue.num_tokens) break;
      const float scale = row_scale<true>(epilogue, first + t);
      if (threadIdx.x % 32 != t) continue;
      if (gate) {
        finish_gated<Element, true>(
            epilogue, first + t, output, sums[t] * scale + bias_of<true>(epilogue, output),
            up_sums[t] * scale + bias_of<true>(epilogue, epilogue.num_outputs + output));
      } else {
        const bool adds = epilogue.kind == Epilogue::Add;
        const float before = adds ? load_output(epilogue, first + t, output) : 0.0F;
        finish_output<Element>(epilogue, first + t, output,
                               before + sums[t] * scale + bias_of<true>(epilogue, output), 0.0F);
      }
    }
  }
}

}  // namespace

void few_rows_plain(const CudaOp& op, const FewRowsProduct& product) {
  const PlainArgs args{product.weight.data, product.in.h, epilogue_args(product)};
  const std::uint32_t blocks = (args.epilogue.num_outputs + kWarps - 1) / kWarps;
  const auto kernel = product.in.dtype == Dtype::BF16 ? few_rows_plain_kernel<__nv_bfloat16>
                                                      : few_rows_plain_kernel<__half>;
  launch(op, kernel, {blocks, kWarps * 32}, args);
}

}  // namespace inferno::ops::cuda
