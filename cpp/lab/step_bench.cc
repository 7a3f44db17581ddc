// Times whole steps of the engine on a GPU with random weights of true shapes, two steps under way
// as the node has them: decode at several batch sizes, prefill. Prints medians: milliseconds by the
// host's clock from the end of one step to that of the next, the device's own, its idle time
// between two steps, of a step alone from its submission to its answer, what others reach, and
// which parts a step's time goes to.
//
//   step_bench MODEL [FORMAT] [--deterministic] [--decode]
//   MODEL: 1b, 8b or 7b; FORMAT, of the layers' matrices: bf16, fp8, int8, int4 (groups of 128) or
//   mxfp4; --decode: only decode steps
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "lab/support/bench_model.h"
#include "lab/support/ceilings.h"
#include "lab/support/formats.h"
#include "lab/support/gpu_bench.h"
#include "lab/support/step_peers.h"
#include "lab/support/step_split.h"

namespace inferno::lab {
namespace {

using namespace engine;

constexpr std::uint32_t kContextLen = 160;  // of decodes
constexpr std::uint32_t kBatches[] = {1, 8, 16, 24, 32, 64, 128, 256};
constexpr std::uint32_t kMaxBatch = 256;
constexpr std::uint32_t kSplitBatches[] = {1, 8, 32, 64, 256};
constexpr EqualSequences kLargestPrefill = {8, 2048, 2048};
constexpr EqualSequences kShortestPrefill = {1, 32, 32};
constexpr EqualSequences kPrefills[] = {
    kShortestPrefill, {1, 512, 512}, {1, 2048, 2048}, kLargestPrefill};
constexpr std::uint32_t kMaxStepTokens = 8 * 2048;
constexpr std::uint32_t kMaxSeqLen = 2560;
constexpr double kWarmUpMs = 200;  // before each measurement, for the clocks to rise
constexpr double kRestMs = 5;      // before a step alone

struct Asked {
  std::string model;
  std::string format = "bf16";
  bool deterministic = false;
  bool only_decodes = false;
};

LlamaShape shape_of(const Asked& asked) {
  const auto format = kFormats.find(asked.format);
  if (format == kFormats.end()) {
    throw std::invalid_argument("expected a format bf16, fp8, int8, int4 or mxfp4, got " +
                                asked.format);
  }
  LlamaShape shape = lab::shape_of(asked.model);
  shape.linear_format = format->second;
  return shape;
}

// Medians.
struct Timed {
  double step_ms = 0, submit_us = 0, device_ms = 0, idle_us = 0;
};

using TimedSteps = std::map<std::pair<std::uint32_t, std::uint32_t>, Timed>;

// What a step is known by: its sequences and the tokens of each.
std::pair<std::uint32_t, std::uint32_t> key_of(const EqualSequences& sequences) {
  return {sequences.num_seqs, sequences.query_len};
}

EqualSequences decodes(std::uint32_t num_seqs) { return {num_seqs, 1, kContextLen, true}; }

// `count` equal steps, two under way.
Timed time_steps(Context& context, std::uint32_t model, const EqualSequences& sequences,
                 int count) {
  const StepOfEquals step(sequences);
  const StepBatch batch = step.batch();
  std::vector<double> submits, device, idle, between;
  const auto submit = [&] {
    const double start = now_ms();
    context.submit_step(model, batch);
    submits.push_back((now_ms() - start) * 1e3);
  };
  const auto take = [&] {
    const StepOutput output = context.take_step();
    device.push_back(output.device_ms);
    idle.push_back(output.idle_ms * 1e3);
  };
  const double warm = now_ms() + kWarmUpMs;
  do {
    context.run_step(model, batch);
  } while (now_ms() < warm);
  submit();
  submit();
  take();
  double last = now_ms();
  for (int i = 0; i < count; ++i) {
    submit();
    take();
    const double now = now_ms();
    between.push_back(now - std::exchange(last, now));
  }
  take();
  return {median(between), median(submits), median(device), median(idle)};
}

// Of steps that find the device at rest.
double alone_ms(Context& context, std::uint32_t model, const EqualSequences& sequences, int count) {
  const StepOfEquals step(sequences);
  const StepBatch batch = step.batch();
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(kRestMs));
    const double start = now_ms();
    context.submit_step(model, batch);
    while (!context.step_has_ended()) {
    }
    context.take_step();
    times.push_back(now_ms() - start);
  }
  return median(times);
}

// With just the blocks that the sequences need, so that the smaller cards have room, too.
ModelLimits limits_for(const LlamaShape& shape, const EqualSequences& largest,
                       std::uint32_t max_step_tokens) {
  ModelLimits limits{kBlockSize, 0, largest.num_seqs, max_step_tokens, kMaxSeqLen, {2}};
  limits.kv_bytes = KvCache::bytes_per_block(spec_of(shape), kBlockSize) * largest.num_blocks();
  return limits;
}

std::string figure(std::optional<double> value) {
  if (!value) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%g", *value);
  return text;
}

// Milliseconds to read the weights once; of an embedding of its own a step reads some rows only.
double floor_ms(const LlamaShape& shape, const ModelPlan& plan, double read) {
  const double embedding =
      shape.tie_word_embeddings ? 0 : 2.0 * shape.vocab_size * shape.hidden_size;
  return (static_cast<double>(plan.weight_bytes) - embedding) / read * 1e3;
}

void bench_decodes(Context& context, const ModelPlan& plan, const StepPeer& peer, double floor_ms,
                   TimedSteps& all) {
  std::printf("%-20s %9s %10s %9s %10s %10s %8s %8s\n", "decode, context 160", "ms", "device ms",
              "idle us", "submit us", "% of read", "vLLM", "probe");
  for (const std::uint32_t batch : kBatches) {
    const Timed timed = time_steps(context, plan.model, decodes(batch), batch > 64 ? 60 : 120);
    const auto probe = batch == 1 ? std::optional(peer.probe_ms) : std::nullopt;
    std::printf("batch %-14u %9.3f %10.3f %9.1f %10.1f %10.1f %8s %8s\n", batch, timed.step_ms,
                timed.device_ms, timed.idle_us, timed.submit_us, 100 * floor_ms / timed.step_ms,
                figure(vllm_decode_ms(peer, batch)).c_str(), figure(probe).c_str());
    std::fflush(stdout);
    all[key_of(decodes(batch))] = timed;
  }
}

// Every seat samples so, and has a token, which decode steps are fed.
void bind_seats(Context& context, std::uint32_t model, const ops::SamplerSpec& spec) {
  std::vector<std::uint32_t> prompt(kContextLen - 1);
  for (std::uint32_t i = 0; i < prompt.size(); ++i) prompt[i] = i * 31 % 30000;
  const auto prompt_len = static_cast<std::uint32_t>(prompt.size());
  for (std::uint32_t seat = 0; seat < kMaxBatch; ++seat) {
    context.bind_seat(model, spec, {.seat = seat, .prompt_len = prompt_len, .token_ids = prompt});
  }
  context.run_step(model, StepOfEquals({kMaxBatch, 1, 1}).batch());
}

// What a sequence may want of its sampler, by all rows of a decode step.
void bench_samplers(Context& context, std::uint32_t model) {
  constexpr std::uint32_t kRows = 64;
  const std::pair<const char*, ops::SamplerSpec> samplers[] = {
      {"greedy", {}},
      {"temperature, top-p", {.temperature = 0.8F, .top_p = 0.9F}},
      {"penalties", {.frequency_penalty = 0.5F, .repetition_penalty = 1.1F}},
      {"log probability", {.want_logprob = true}},
      {"top 20", {.num_logprobs = 20}},
      {"penalties and top 20", {.repetition_penalty = 1.1F, .num_logprobs = 20}},
  };
  std::printf("%-24s %9s %10s %10s\n", "samplers, batch 64", "ms", "device ms", "% of greedy");
  double greedy = 0;
  for (const auto& [name, spec] : samplers) {
    bind_seats(context, model, spec);
    const Timed timed = time_steps(context, model, decodes(kRows), 120);
    if (greedy == 0) greedy = timed.step_ms;
    std::printf("%-24s %9.3f %10.3f %10.1f\n", name, timed.step_ms, timed.device_ms,
                100 * timed.step_ms / greedy);
    std::fflush(stdout);
  }
}

void bench_prefills(Context& context, const ModelPlan& plan, const Asked& asked, TimedSteps& all) {
  std::printf("%-20s %9s %10s %9s %8s\n", "prefill", "ms", "tok/s", "alone ms", "vLLM");
  for (const EqualSequences& sequences : kPrefills) {
    const std::uint32_t num_tokens = sequences.num_seqs * sequences.query_len;
    const int count = asked.deterministic ? 5 : 20;
    const Timed timed = time_steps(context, plan.model, sequences, count);
    const double alone = alone_ms(context, plan.model, sequences, num_tokens > 4096 ? 3 : 20);
    const auto vllm = num_tokens == kMaxStepTokens
                          ? std::optional(step_peer(asked.model).vllm_prefill)
                          : std::nullopt;
    const std::string name =
        std::to_string(sequences.num_seqs) + " x " + std::to_string(sequences.query_len);
    std::printf("prefill %-12s %9.3f %10.0f %9.3f %8s\n", name.c_str(), timed.step_ms,
                num_tokens / timed.step_ms * 1e3, alone, figure(vllm).c_str());
    std::fflush(stdout);
    all[key_of(sequences)] = timed;
  }
}

TimedSteps bench_steps(const Asked& asked, double read) {
  const LlamaShape shape = shape_of(asked);
  const ModelLimits limits = limits_for(shape, decodes(kMaxBatch), kMaxStepTokens);
  Context context(options_for(shape, limits, asked.deterministic));
  const double begin = now_ms();
  const ModelPlan plan = context.add_model(spec_of(shape), limits);
  context.fill_random(plan.model, 1);
  const double filled = now_ms();
  context.finish_model(plan.model);
  std::printf(
      "%s %s%s: weights %.2f GB, workspace %.2f GB, %u KV blocks; made in %.0f ms, warm in %.0f "
      "ms\n",
      asked.model.c_str(), asked.format.c_str(), asked.deterministic ? ", deterministic" : "",
      plan.weight_bytes / 1e9, plan.workspace_bytes / 1e9, plan.num_blocks, filled - begin,
      now_ms() - filled);
  std::printf("vLLM: 0.24 offline; probe: ours of a step's structure; both measured on an H200\n");
  bind_seats(context, plan.model, {});
  const StepPeer& peer = step_peer(asked.model);
  TimedSteps timed;
  bench_decodes(context, plan, peer, floor_ms(shape, plan, read), timed);
  if (asked.only_decodes) return timed;
  bench_prefills(context, plan, asked, timed);
  bench_samplers(context, plan.model);
  return timed;
}

void print_part(double ms, double step_ms) {
  std::printf(" %8.3f %5.1f %%", ms, 100 * ms / step_ms);
}

void print_parts(const char* name, const StepParts& parts, const Timed& step) {
  const double gaps = step.idle_us * 1e-3;
  std::printf("%-20s", name);
  for (const double ms :
       {parts.attention, parts.products, parts.other(), gaps, parts.sum() + gaps}) {
    print_part(ms, step.step_ms);
  }
  std::printf(
      "\n  other: embedding %.4f, rope and KV %.4f, norms %.4f, activation %.4f, sampler %.4f\n",
      parts.embedding, parts.rope_kv, parts.norms, parts.activation, parts.sampler);
  std::fflush(stdout);
}

void bench_parts(const Asked& asked, const TimedSteps& timed) {
  const LlamaShape shape = shape_of(asked);
  const ModelLimits limits = limits_for(shape, decodes(kMaxBatch), kMaxStepTokens);
  StepSplit split(shape, limits, options_for(shape, limits, asked.deterministic));
  std::printf("parts of a step, each timed by itself over all layers: ms, share of the step\n");
  std::printf("sum: above the step where parts overlap in it, below for the copies that it has\n");
  std::printf("%-20s %16s %16s %16s %16s %16s\n", "decode, context 160", "attention", "products",
              "other", "gaps", "sum");
  for (const std::uint32_t batch : kSplitBatches) {
    const std::string name = "batch " + std::to_string(batch);
    print_parts(name.c_str(), split.measure(StepOfEquals(decodes(batch))),
                timed.at(key_of(decodes(batch))));
  }
  print_parts("prefill 1 x 32", split.measure(StepOfEquals(kShortestPrefill)),
              timed.at(key_of(kShortestPrefill)));
  if (asked.deterministic) return;  // seconds a step
  print_parts("prefill 8 x 2048", split.measure(StepOfEquals(kLargestPrefill)),
              timed.at(key_of(kLargestPrefill)));
}

Asked asked_for(int argc, char** argv) {
  Asked asked{.model = argc > 1 ? argv[1] : "8b"};
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--deterministic") {
      asked.deterministic = true;
    } else if (argument == "--decode") {
      asked.only_decodes = true;
    } else if (i == 2 && !argument.starts_with("-")) {
      asked.format = argument;
    } else {
      throw std::invalid_argument(
          "expected step_bench MODEL [FORMAT] [--deterministic] [--decode], got " + argument);
    }
  }
  return asked;
}

void run(const Asked& asked) {
  const double read = print_read_ceiling(Gpu());
  // The steps' memory is given back before the parts take theirs.
  const auto timed = bench_steps(asked, read);
  if (!asked.only_decodes) bench_parts(asked, timed);
}

}  // namespace
}  // namespace inferno::lab

int main(int argc, char** argv) {
  return inferno::lab::run_bench([&] { inferno::lab::run(inferno::lab::asked_for(argc, argv)); });
}
