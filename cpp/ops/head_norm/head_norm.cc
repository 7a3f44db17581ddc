#include "ops/head_norm/head_norm.h"

#include "ops/base/for_each_row.h"
#include "ops/rms_norm/rms_norm.h"

namespace inferno::ops {

void head_norm(const OpContext& context, const HeadNormArgs& args) {
  const NormRow norm{args.weight, args.eps, args.width};
  const std::size_t row_size = std::size_t{args.num_heads} * args.width;
  for_each_row(context, args.num_tokens, row_size, [&](std::size_t token) {
    float* head = args.x + token * args.row_stride;
    for (std::uint32_t h = 0; h < args.num_heads; ++h, head += args.width) {
      normalize_row(norm, head, head);
    }
  });
}

}  // namespace inferno::ops
