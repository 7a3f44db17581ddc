// Rows of an op shared out to the threads, several at a time where they are short.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/base/op_context.h"

namespace inferno::ops {

// Below this many elements for each thread, waking a thread takes longer than the work.
inline constexpr std::size_t kElementsPerChunk = 16384;

// Calls row(i) for every i < num_rows; a thread takes max_elements / row_size of them at once.
template <typename Row>
void for_each_row(const OpContext& context, std::size_t num_rows, std::size_t row_size, Row row,
                  std::size_t max_elements = kElementsPerChunk) {
  const std::size_t step =
      std::max<std::size_t>(1, max_elements / std::max<std::size_t>(1, row_size));
  const auto num_chunks = static_cast<std::uint32_t>((num_rows + step - 1) / step);
  context.threads.parallel_for(num_chunks, [&](std::uint32_t chunk, std::uint32_t) {
    const std::size_t end = std::min(num_rows, (chunk + 1) * step);
    for (std::size_t i = chunk * step; i < end; ++i) row(i);
  });
}

}  // namespace inferno::ops
