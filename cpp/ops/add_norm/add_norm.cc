#include "ops/add_norm/add_norm.h"

#include "ops/rms_norm/rms_norm.h"

namespace inferno::ops {

void add_norm(const OpContext& context, const AddNormArgs& args) {
  const std::size_t hidden_size = args.hidden_size;
  if (args.normalise) {
    rms_norm(context, {args.y, args.weight, args.eps, args.num_tokens, args.hidden_size, args.y});
  }
  context.threads.parallel_for(args.num_tokens, [&](std::uint32_t token, std::uint32_t) {
    const float* y = args.y + token * hidden_size;
    float* x = args.x + token * hidden_size;
    for (std::size_t i = 0; i < hidden_size; ++i) x[i] += args.scale * y[i];
  });
}

}  // namespace inferno::ops
