// Times what a seat's sampler does to a step beside the draw (elementwise_bench has that): rules on
// logits, log probabilities, the seats' state. Rows of Llama-3.1-8B's vocabulary; launches chained
// in a graph, on buffers in rotation so that the L2 does not answer for the memory.
//   sampler_bench
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "lab/support/ceilings.h"
#include "lab/support/gpu_bench.h"
#include "ops/process_logits/process_logits_cuda.h"
#include "ops/score/score_cuda.h"

namespace inferno::lab {
namespace {

using namespace ops;

constexpr std::uint32_t kVocab = 128256;
constexpr std::uint32_t kMaxRows = 256;
constexpr std::uint32_t kPromptLen = 1000;
constexpr std::size_t kSetFloats = std::size_t{kMaxRows} * kVocab;
constexpr std::size_t kSets = 8;

class Bench {
 public:
  Bench() : read_(print_read_ceiling(gpu_)) {
    fill_normal(gpu_, arena_);
    std::vector<std::uint32_t> ids(kPromptLen);
    for (std::uint32_t i = 0; i < kPromptLen; ++i) ids[i] = i * 7919 % kVocab;
    const DeviceArray<std::uint32_t> token_ids(ids);
    for (std::uint32_t seat = 0; seat < kMaxRows; ++seat) {
      cuda::count_tokens_cuda(gpu_.op(), {.token_ids = token_ids.data(),
                                          .num_tokens = kPromptLen,
                                          .prompt_len = kPromptLen / 2,
                                          .vocab_size = kVocab,
                                          .counts = counts_.data() + seat * counts_stride(kVocab)});
    }
    gpu_.wait();
  }

  const cuda::CudaOp& op() const { return gpu_.op(); }
  float* logits(std::size_t index) const { return arena_.data() + index % kSets * kSetFloats; }
  SeatStates states() const {
    return {kVocab,        masks_.data(), biases_.data(), word_ids_.data(), word_ends_.data(),
            tails_.data(), counts_.data()};
  }

  // The bytes are those that must be moved.
  void time(const char* name, std::uint32_t rows, double bytes,
            const std::function<void(std::size_t)>& launch_one) const {
    constexpr std::size_t kChain = 50;
    const double us = gpu_.median_us([&] {
      for (std::size_t i = 0; i < kChain; ++i) launch_one(i);
    }) / kChain;
    std::printf("%-32s %6u %9.2f us %5.1f %% of read\n", name, rows, us, bytes / us * 1e8 / read_);
    std::fflush(stdout);
  }

 private:
  Gpu gpu_;
  double read_;  // bytes/s at the most
  DeviceArray<float> arena_{kSets * kSetFloats};
  DeviceArray<std::uint32_t> masks_{kMaxRows * 2 * mask_words(kVocab)};
  DeviceArray<TokenBias> biases_{std::size_t{kMaxRows} * kMaxBiases};
  DeviceArray<std::uint32_t> word_ids_{std::size_t{kMaxRows} * kMaxBannedWordTokens};
  DeviceArray<std::uint32_t> word_ends_{std::size_t{kMaxRows} * kMaxBannedWords};
  DeviceArray<std::uint32_t> tails_{std::size_t{kMaxRows} * kTailLen};
  DeviceArray<std::uint16_t> counts_{kMaxRows * counts_stride(kVocab)};
};

struct Rules {
  const char* name;
  LogitRules rules;
  double bytes;  // of a row's id
};

void bench_process(const Bench& bench, std::uint32_t rows) {
  constexpr LogitRules kPenalties{
      .has_penalties = 1, .repetition_penalty = 1.1F, .frequency_penalty = 0.5F};
  constexpr LogitRules kAll{.seat_mask = SeatMask::kAllowed,
                            .num_biases = 300,
                            .has_penalties = 1,
                            .repetition_penalty = 1.1F,
                            .frequency_penalty = 0.5F};
  for (const auto& [name, rules, bytes] : {Rules{"rules: bias", {.num_biases = 10}, 8},
                                           {"rules: penalties", kPenalties, 10},
                                           {"rules: all but words", kAll, 10.125}}) {
    std::vector<LogitRules> each(rows, rules);
    for (std::uint32_t row = 0; row < rows; ++row) each[row].seat = row;
    const DeviceArray<LogitRules> device_rules(each);
    bench.time(name, rows, bytes * rows * kVocab, [&](std::size_t i) {
      cuda::process_logits_cuda(bench.op(), {.logits = bench.logits(2 * i),
                                             .rules = device_rules.data(),
                                             .states = bench.states(),
                                             .num_rows = rows,
                                             .out = bench.logits(2 * i + 1)});
    });
  }
  const DeviceArray<LogitRules> noting(std::vector<LogitRules>(rows, kPenalties));
  const DeviceArray<Sampled> sampled(rows);
  bench.time("note_sampled", rows, 0, [&](std::size_t) {
    cuda::note_sampled_cuda(bench.op(), {.rules = noting.data(),
                                         .sampled = sampled.data(),
                                         .states = bench.states(),
                                         .num_rows = rows});
  });
}

void bench_score(const Bench& bench, std::uint32_t rows) {
  const DeviceArray<std::byte> workspace(cuda::score_cuda_workspace_bytes(rows, kVocab));
  const DeviceArray<Sampled> targets(rows);
  const DeviceArray<RowScore> scores(rows);
  const DeviceArray<TokenLogit> top(std::size_t{rows} * kMaxTop);
  for (const std::uint32_t num_top : {0U, 5U, 20U}) {
    const DeviceArray<RowLogprobs> wanted(std::vector<RowLogprobs>(rows, {num_top, true, false}));
    const std::string name = "log probabilities, top " + std::to_string(num_top);
    bench.time(name.c_str(), rows, 8.0 * rows * kVocab, [&](std::size_t i) {
      cuda::score_cuda(bench.op(), {.logits = bench.logits(i),
                                    .rows = wanted.data(),
                                    .targets = targets.data(),
                                    .num_rows = rows,
                                    .vocab_size = kVocab,
                                    .workspace = workspace.data(),
                                    .scores = scores.data(),
                                    .top = top.data()});
    });
  }
}

void run() {
  const Bench bench;
  for (const std::uint32_t rows : {1U, 8U, 64U, 256U}) {
    bench_process(bench, rows);
    bench_score(bench, rows);
  }
}

}  // namespace
}  // namespace inferno::lab

int main() { return inferno::lab::run_bench(inferno::lab::run); }
