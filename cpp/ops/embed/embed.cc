#include "ops/embed/embed.h"

#include <stdexcept>
#include <string>

namespace inferno::ops {

void embed(const OpContext& context, const PackedWeights& table,
           std::span<const std::uint32_t> token_ids, float* out) {
  for (const std::uint32_t id : token_ids) {
    if (id >= table.shape.num_rows) {
      throw std::invalid_argument("invalid_batch: embed: token id " + std::to_string(id) +
                                  ", expected below " + std::to_string(table.shape.num_rows));
    }
  }
  const auto num_tokens = static_cast<std::uint32_t>(token_ids.size());
  context.threads.parallel_for(num_tokens, [&](std::uint32_t token, std::uint32_t) {
    unpack_row(table, token_ids[token], out + std::size_t{token} * table.shape.num_columns);
  });
}

}  // namespace inferno::ops
