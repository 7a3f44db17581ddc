// Times steps in which sequences decode and prompts are computed, as a node has them that is asked
// by many at once: medians of a whole step, two under way, for so long that the card's power has
// settled; then which parts it goes to, each timed by itself.
//
//   mixed_bench MODEL [FORMAT] [--parts] [TOKENS...]
//   MODEL: 1b, 8b or 7b; FORMAT, of the layers' matrices: bf16, fp8, int8, int4 or mxfp4; TOKENS of
//   a step, kDecodes of them of sequences that decode
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/context.h"
#include "lab/support/bench_model.h"
#include "lab/support/formats.h"
#include "lab/support/gpu_bench.h"
#include "lab/support/step_split.h"

namespace inferno::lab {
namespace {

using namespace engine;

constexpr std::uint32_t kDecodes = 352;
constexpr std::uint32_t kDecodeContext = 576;
constexpr std::uint32_t kPromptLen = 512;
constexpr std::uint32_t kMaxSeqs = 512;
constexpr std::uint32_t kMaxStepTokens = 8192;
constexpr std::uint32_t kMaxSeqLen = 2048;
constexpr double kWarmUpMs = 400;  // until a card is at its power cap
constexpr double kMeasuredMs = 1000;

struct Asked {
  std::string model;
  std::string format = "bf16";
  bool parts = false;
  std::vector<std::uint32_t> tokens;
};

EqualSequences decodes() { return {kDecodes, 1, kDecodeContext, true}; }

// Prompts of so many tokens in all; the last is shorter.
std::vector<EqualSequences> prompts(std::uint32_t num_tokens) {
  const std::uint32_t whole = num_tokens / kPromptLen;
  const std::uint32_t rest = num_tokens % kPromptLen;
  return {{whole, kPromptLen, kPromptLen}, {rest > 0 ? 1U : 0U, rest, rest}};
}

std::vector<EqualSequences> mixed(std::uint32_t num_tokens) {
  const std::vector<EqualSequences> kinds = prompts(num_tokens - kDecodes);
  return {decodes(), kinds[0], kinds[1]};
}

ModelLimits limits_for(const LlamaShape& shape) {
  ModelLimits limits{kBlockSize, 0, kMaxSeqs, kMaxStepTokens, kMaxSeqLen, {2}};
  const std::uint32_t num_blocks = decodes().num_blocks() + kMaxStepTokens / kBlockSize + 1;
  limits.kv_bytes = KvCache::bytes_per_block(spec_of(shape), kBlockSize) * num_blocks;
  return limits;
}

double step_ms(Context& context, std::uint32_t model, const StepBatch& batch) {
  std::vector<double> device;
  const auto run_for = [&](double ms) {
    device.clear();
    const double end = now_ms() + ms;
    context.submit_step(model, batch);
    while (now_ms() < end) {
      context.submit_step(model, batch);
      device.push_back(context.take_step().device_ms);
    }
    context.take_step();
  };
  run_for(kWarmUpMs);
  run_for(kMeasuredMs);
  return median(device);
}

void bench_steps(const Asked& asked, const LlamaShape& shape) {
  const ModelLimits limits = limits_for(shape);
  Context context(options_for(shape, limits));
  const ModelPlan plan = context.add_model(spec_of(shape), limits);
  context.fill_random(plan.model, 1);
  context.finish_model(plan.model);
  const std::vector<std::uint32_t> prompt(kDecodeContext - 1, 7);
  for (std::uint32_t seat = 0; seat < kMaxSeqs; ++seat) {
    context.bind_seat(plan.model, {},
                      {.seat = seat, .prompt_len = kDecodeContext - 1, .token_ids = prompt});
  }
  const EqualSequences first{kMaxSeqs, 1, 1};
  context.run_step(plan.model, StepOfEquals(first).batch());
  std::printf("%s %s, %u sequences decode behind %u positions, prompts of %u\n",
              asked.model.c_str(), asked.format.c_str(), kDecodes, kDecodeContext, kPromptLen);
  for (const std::uint32_t tokens : asked.tokens) {
    const StepOfEquals step(mixed(tokens));
    const double ms = step_ms(context, plan.model, step.batch());
    std::printf("%5u tokens %8.3f ms %8.3f us a token\n", tokens, ms, ms * 1e3 / tokens);
    std::fflush(stdout);
  }
}

void bench_parts(const Asked& asked, const LlamaShape& shape) {
  const ModelLimits limits = limits_for(shape);
  StepSplit split(shape, limits, options_for(shape, limits));
  for (const std::uint32_t tokens : asked.tokens) {
    const StepParts all = split.measure(StepOfEquals(mixed(tokens)));
    const StepParts decoding = split.measure(StepOfEquals(decodes()));
    const StepParts prefill = split.measure(StepOfEquals(prompts(tokens - kDecodes)));
    std::printf(
        "%5u tokens: products %.3f ms, attention %.3f (decodes alone %.3f, prompts %.3f), rope and "
        "KV %.3f, norms %.3f, activation %.3f, sampler %.3f, embedding %.3f\n",
        tokens, all.products, all.attention, decoding.attention, prefill.attention, all.rope_kv,
        all.norms, all.activation, all.sampler, all.embedding);
    std::fflush(stdout);
  }
}

Asked asked_for(int argc, char** argv) {
  Asked asked;
  asked.model = argc > 1 ? argv[1] : "8b";
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--parts") {
      asked.parts = true;
    } else if (kFormats.contains(argument)) {
      asked.format = argument;
    } else {
      asked.tokens.push_back(static_cast<std::uint32_t>(std::strtoul(argv[i], nullptr, 10)));
      if (asked.tokens.back() <= kDecodes || asked.tokens.back() > kMaxStepTokens) {
        throw std::invalid_argument(
            "expected mixed_bench MODEL [FORMAT] [--parts] [TOKENS...], got " + argument);
      }
    }
  }
  if (asked.tokens.empty()) asked.tokens = {1024, 1536, 1792, 1920, 2048, 2176, 2304, 4096, 8192};
  return asked;
}

void run(const Asked& asked) {
  LlamaShape shape = shape_of(asked.model);
  shape.linear_format = kFormats.at(asked.format);
  bench_steps(asked, shape);
  if (asked.parts) bench_parts(asked, shape);
}

}  // namespace
}  // namespace inferno::lab

int main(int argc, char** argv) {
  return inferno::lab::run_bench([&] { inferno::lab::run(inferno::lab::asked_for(argc, argv)); });
}
