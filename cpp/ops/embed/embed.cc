#include "ops/embed/embed.h"

#include <stdexcept>
#include <string>

namespace inferno::ops {

void embed(const OpContext& context, const EmbedArgs& args) {
  const WeightShape& shape = args.table.shape;
  for (const std::uint32_t id : args.token_ids) {
    if (id >= shape.num_rows) {
      throw std::invalid_argument("invalid_batch: embed: token id " + std::to_string(id) +
                                  ", expected below " + std::to_string(shape.num_rows));
    }
  }
  const auto num_tokens = static_cast<std::uint32_t>(args.token_ids.size());
  context.threads.parallel_for(num_tokens, [&](std::uint32_t token, std::uint32_t) {
    float* row = args.out + std::size_t{token} * shape.num_columns;
    unpack_row(args.table, args.token_ids[token], row);
    if (args.scale == 1.0F) return;
    for (std::uint32_t i = 0; i < shape.num_columns; ++i) row[i] *= args.scale;
  });
}

}  // namespace inferno::ops
