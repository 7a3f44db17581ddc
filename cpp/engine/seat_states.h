// Where a workspace has the seats' state.
#pragma once

#include <cstdint>

#include "ops/process_logits/process_logits.h"

namespace inferno::engine {

// place(array, length) as the workspaces have it.
template <typename Place>
void place_seat_states(Place& place, std::uint64_t num_seats, std::uint32_t vocab_size,
                       ops::SeatStates& states) {
  states.vocab_size = vocab_size;
  place(states.masks, num_seats * 2 * ops::mask_words(vocab_size));
  place(states.biases, num_seats * ops::kMaxBiases);
  place(states.word_ids, num_seats * ops::kMaxBannedWordTokens);
  place(states.word_ends, num_seats * ops::kMaxBannedWords);
  place(states.tails, num_seats * ops::kTailLen);
  place(states.counts, num_seats * ops::counts_stride(vocab_size));
}

}  // namespace inferno::engine
