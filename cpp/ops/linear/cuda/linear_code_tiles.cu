#include <algorithm>
#include <limits>

#include "ops/linear/cuda/code_kernels.h"
#include "ops/linear/cuda/linear_code_tiles.cuh"

namespace inferno::ops::cuda {
namespace {

using namespace code_tiles;

constexpr CodeKernels kKernels{
    fp8_tiles, int8_tiles, int4_tiles, int4_offset_tiles, int4_small_group_tiles, mxfp4_tiles};

const Variant& variant_of(std::span<const Variant> variants, std::uint32_t num_tokens) {
  const auto enough = std::ranges::find_if(
      variants, [&](const Variant& variant) { return num_tokens <= variant.max_tokens; });
  return enough == variants.end() ? variants.back() : *enough;
}

// How a product is cut: rows of W by warps of a block, columns by blocks of a cluster.
struct Cut {
  std::uint32_t warps;
  std::uint32_t blocks;
};

// What decides how long a product takes.
struct Work {
  std::uint32_t warps;  // that all rows of W need
  std::uint32_t boxes;
  std::uint32_t strip_bytes;  // of a box
  std::uint32_t tokens_of_tile;
  std::uint32_t token_tiles;
};

// Cycles of a product, as an H200 takes them (linear_bench, 64 to 512 rows): a box takes what its
// warpgroups' products and conversions do or what comes in does; then there is the beginning and
// the end of a tile, which is the longer the more is handed over.
double cycles_of(const Work& work, const Cut& cut, std::uint32_t clusters) {
  const std::uint32_t tiles = divide_up(work.warps, cut.warps) * work.token_tiles;
  const std::uint32_t rounds = divide_up(tiles, clusters);
  const std::uint32_t active = std::min(tiles, clusters) * cut.blocks;
  const double bytes =
      cut.warps * kWarpStrips * work.strip_bytes + work.tokens_of_tile * 2.0 * kSpanColumns;
  const double warpgroup = work.tokens_of_tile <= 64 ? 350 : 540;
  const double box = std::max(250 + cut.warps / 4 * warpgroup, bytes * active / 4000);
  const double ends = 5000 + (cut.blocks == 1 ? 25 : 80) * work.tokens_of_tile;
  return rounds * (divide_up(work.boxes, cut.blocks) * box + ends);
}

// clusters: of so many blocks, how many run at once.
Cut best_cut(const Work& work, std::span<const std::uint32_t> clusters) {
  Cut best{};
  double least = std::numeric_limits<double>::infinity();
  for (std::uint32_t warps = 4; warps <= kMaxWarps; warps += 4) {
    for (std::uint32_t blocks = 1; blocks < clusters.size(); ++blocks) {
      if (clusters[blocks] == 0) continue;
      const double cycles = cycles_of(work, {warps, blocks}, clusters[blocks]);
      if (cycles >= least) continue;
      least = cycles;
      best = {warps, blocks};
    }
  }
  return best;
}

}  // namespace

CodeTilesKernel::CodeTilesKernel(const CudaOp& op) {
  if (!op.dependent_launch) return;
  for (std::uint32_t blocks = 1; blocks <= kMaxCluster; ++blocks) clusters_[blocks] = op.num_sms;
  kKernels.for_each([&](const Variant& variant) {
    for (std::uint32_t blocks = 1; blocks <= kMaxCluster; ++blocks) {
      clusters_[blocks] = std::min(clusters_[blocks], clusters_at_once(op, variant, blocks));
    }
  });
}

bool CodeTilesKernel::takes(const WeightFormat& format) const {
  return clusters_[1] > 0 && has_code_layout(format);
}

void CodeTilesKernel::operator()(const CudaOp& op, const FewRowsProduct& product) const {
  const DeviceMatrix& weight = product.weight;
  const CodeLayout layout({weight.num_rows, weight.num_columns, weight.format});
  const Variant& variant =
      variant_of(kKernels.of(weight.format, product.in.dtype), product.in.num_tokens);
  FewRowsArgs args = few_rows_args(product, kSpanColumns, 1);
  const Work work{.warps = divide_up(args.epilogue.num_outputs, args.outputs_per_warp),
                  .boxes = args.boxes_per_tile,
                  .strip_bytes = layout.row_major ? kStripRows * kSpanColumns
                                                  : static_cast<std::uint32_t>(layout.span_bytes),
                  .tokens_of_tile = variant.max_tokens,
                  .token_tiles = divide_up(product.in.num_tokens, variant.max_tokens)};
  const Cut cut = best_cut(work, clusters_);
  args.warps_per_tile = cut.warps;
  args.num_tiles = divide_up(work.warps, cut.warps);
  args.weight_map = codes_map(product, layout, cut.warps * kWarpRows);
  args.input_map =
      box_map({product.in.h, product.in.num_tokens, weight.num_columns, product.in.dtype},
              variant.max_tokens);
  args.codes = codes_args(weight, layout);
  const std::uint32_t blocks = args.num_tiles * work.token_tiles * cut.blocks;
  const std::uint32_t threads = cut.warps * 32 + kProducerThreads;
  launch(op, variant.kernel, {blocks, threads, variant.shared_bytes, cut.blocks}, args);
}

}  // namespace inferno::ops::cuda
