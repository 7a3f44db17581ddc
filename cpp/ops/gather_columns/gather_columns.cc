#include "ops/gather_columns/gather_columns.h"

#include "ops/base/for_each_row.h"

namespace inferno::ops {

void gather_columns(const OpContext& context, const GatherColumnsArgs& args) {
  for_each_row(context, args.num_tokens, args.num_columns, [&](std::size_t token) {
    const float* x = args.x + token * args.num_columns;
    float* out = args.out + token * args.num_columns;
    for (std::uint32_t k = 0; k < args.num_columns; ++k) out[k] = x[args.order[k]];
  });
}

}  // namespace inferno::ops
