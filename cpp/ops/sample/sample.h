// Draws one token id from a row of logits.
//
// The result depends on the row and its parameters alone: not on the batch, the threads, the
// instruction set or the C library, because probabilities are integers (2^40 for the likeliest
// token) and their sums therefore exact in any order. The formula is plain enough for a GPU to
// repeat it bit by bit.
//
//   y_i = (logit_i - max) * (log2(e) / temperature)
//   w_i = floor(2^40 * 2^y_i), by a fixed polynomial in float
//
// Filters in the order of transformers: temperature, top-k, top-p (over what top-k left), min-p.
// Among equal logits the lower id ranks higher everywhere, so top_k = 1 is greedy. Then one 64-bit
// random number r picks the first id, in the order of ids, at which the running sum of kept w
// passes floor(r * sum / 2^64).
//
// r comes from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1,
// 2, 3", SC'11) with the seed as key and the position as counter.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace inferno::ops {

inline constexpr float kLog2E = 1.44269504088896341F;

struct SampleParams {
  float temperature = 0;    // 0 is greedy: the lowest id among the highest logits
  std::uint32_t top_k = 0;  // 0 is off
  float top_p = 1;          // above 0 to 1
  float min_p = 0;          // 0 to 1, of the likeliest token's probability
  std::uint64_t seed = 0;   // key of the random number
  // Its counter: index of the token to be sampled in the whole sequence.
  std::uint32_t position = 0;
};

// Scratch of one row.
struct SampleScratch {
  std::span<float> weights;         // [vocab_size]
  std::span<std::uint64_t> ranked;  // [vocab_size]
};

// Why nothing could be drawn; a closed list, so that the caller names the row.
enum class SampleStatus : std::uint8_t {
  kOk,
  kNotANumber,  // a logit is NaN or +infinity
  kNothingLeft  // every logit is -infinity
};

struct Sampled {
  SampleStatus status = SampleStatus::kOk;
  std::uint32_t token_id = 0;
};

inline constexpr std::uint64_t kKeepAll = ~std::uint64_t{0};

// The distribution that a row is drawn from: ids that rank before or at last_key and weigh `least`
// or more, by (logit - max) * scale. Of a greedy row: all ids, at temperature 1.
struct Kept {
  float max = 0;
  float temperature = 1;
  float scale = kLog2E;  // log2(e) / temperature
  float least = 0;       // min_p * 2^40, and 1, for less is never drawn
  std::uint64_t last_key = kKeepAll;
};

// Of logits [vocab_size]. `kept`, if not null, is what was drawn from, where the status is kOk.
Sampled sample_row(std::span<const float> logits, const SampleParams& params,
                   const SampleScratch& scratch, Kept* kept = nullptr);

// Philox4x32-10: counter and key to four random words.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

}  // namespace inferno::ops
