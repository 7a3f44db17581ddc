// Times whole steps of the engine on a GPU with random weights of true shapes, two steps under way
// as the node has them: decode at several batch sizes, prefill. Prints milliseconds by the host's
// clock over many steps, the device's own, and its idle time between two steps.
//
//   step_bench MODEL [--deterministic]     MODEL: 1b, 8b or 7b
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/context.h"

namespace {

using namespace inferno;
using namespace inferno::engine;

constexpr std::uint32_t kBlock = 16;
constexpr double kReadBandwidth = 4.54e12;  // bytes/s, plain reads on an H200
constexpr std::uint32_t kSeqLen = 2560;

ModelShape shape_of(const std::string& name) {
  ModelShape shape;
  shape.rms_norm_eps = 1e-5F;
  shape.rope_theta = 500000;
  if (name == "1b") {
    shape.vocab_size = 128256, shape.hidden_size = 2048, shape.intermediate_size = 8192;
    shape.num_layers = 16, shape.num_heads = 32, shape.num_kv_heads = 8, shape.head_dim = 64;
    shape.tie_word_embeddings = true;
  } else if (name == "8b") {
    shape.vocab_size = 128256, shape.hidden_size = 4096, shape.intermediate_size = 14336;
    shape.num_layers = 32, shape.num_heads = 32, shape.num_kv_heads = 8, shape.head_dim = 128;
  } else {
    shape.vocab_size = 32000, shape.hidden_size = 4096, shape.intermediate_size = 11008;
    shape.num_layers = 32, shape.num_heads = 32, shape.num_kv_heads = 32, shape.head_dim = 128;
  }
  return shape;
}

// The arrays of a step of equal sequences.
struct Arrays {
  std::vector<std::uint32_t> ids, positions, slots, cu, contexts, tables, seats;
  std::unique_ptr<bool[]> feed, sample;
  std::vector<ops::SampleParams> params;
  std::uint32_t num_seqs, stride;

  // query_len tokens of each of num_seqs sequences, after `before` positions.
  Arrays(std::uint32_t num_seqs_, std::uint32_t query_len, std::uint32_t before, bool fed)
      : feed(new bool[num_seqs_]),
        sample(new bool[num_seqs_]),
        params(num_seqs_),
        num_seqs(num_seqs_),
        stride((before + query_len + kBlock - 1) / kBlock) {
    cu.push_back(0);
    for (std::uint32_t seq = 0; seq < num_seqs; ++seq) {
      const std::uint32_t first_block = seq * stride;
      for (std::uint32_t i = 0; i < query_len; ++i) {
        const std::uint32_t position = before + i;
        ids.push_back((seq * 7919 + i * 31) % 30000);
        positions.push_back(position);
        slots.push_back((first_block + position / kBlock) * kBlock + position % kBlock);
      }
      cu.push_back(static_cast<std::uint32_t>(ids.size()));
      contexts.push_back(before + query_len);
      for (std::uint32_t b = 0; b < stride; ++b) tables.push_back(first_block + b);
      seats.push_back(seq);
      feed[seq] = fed;
      sample[seq] = true;
    }
  }
  StepBatch batch() const {
    return {.token_ids = ids,
            .positions = positions,
            .slot_mapping = slots,
            .cu_query_lens = cu,
            .context_lens = contexts,
            .block_tables = tables,
            .block_table_stride = stride,
            .seats = seats,
            .feed_sampled = {feed.get(), num_seqs},
            .sample = {sample.get(), num_seqs},
            .sampling = params};
  }
};

struct Timed {
  double step_ms = 0, submit_us = 0, device_ms = 0, idle_us = 0;  // medians but for step_ms
};

double median(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// `count` equal steps, two under way.
Timed run(Context& context, std::uint32_t model, const Arrays& arrays, int count) {
  const StepBatch batch = arrays.batch();
  std::vector<double> submits, device, idle;
  const auto submit = [&] {
    const double start = now_ms();
    context.submit_step(model, batch);
    submits.push_back((now_ms() - start) * 1e3);
  };
  const auto take = [&] {
    const StepOutput output = context.take_step();
    device.push_back(output.device_ms);
    if (output.idle_ms > 0) idle.push_back(output.idle_ms * 1e3);
  };
  for (int i = 0; i < std::min(3, count / 2); ++i) context.run_step(model, batch);
  const double start = now_ms();
  submit();
  for (int i = 1; i < count; ++i) {
    submit();
    take();
  }
  take();
  return {(now_ms() - start) / count, median(submits), median(device), median(idle)};
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "8b";
  const bool deterministic = argc > 2 && std::strcmp(argv[2], "--deterministic") == 0;
  const ModelShape shape = shape_of(name);
  const ModelLimits limits{kBlock, std::uint64_t{60} << 30, 256, 16384, kSeqLen, {2}};
  DeviceOptions options{.num_threads = 8, .backend = BackendKind::Cuda};
  options.deterministic = deterministic;
  const MemoryNeed need = required_bytes(options, shape, limits);
  options.pool_bytes = need.weight_bytes + need.workspace_bytes + limits.kv_bytes + (1 << 20);
  Context context(options);
  const double begin = now_ms();
  const ModelPlan plan = context.add_model(shape, limits);
  context.fill_random(plan.model, 1);
  const double filled = now_ms();
  context.finish_model(plan.model);
  std::printf(
      "%s%s: weights %.2f GB, workspace %.2f GB, %u KV blocks; made in %.0f ms, warm in %.0f ms\n",
      name.c_str(), deterministic ? ", deterministic" : "", plan.weight_bytes / 1e9,
      plan.workspace_bytes / 1e9, plan.num_blocks, filled - begin, now_ms() - filled);
  // Every seat gets a token, which decode steps are fed.
  context.run_step(plan.model, Arrays(limits.max_batch_size, 1, 0, false).batch());
  const double floor_ms =
      (static_cast<double>(plan.weight_bytes) -
       (shape.tie_word_embeddings ? 0 : 2.0 * shape.vocab_size * shape.hidden_size)) /
      kReadBandwidth * 1e3;
  std::printf("%-22s %10s %10s %10s %10s %12s\n", "decode, context 160", "ms", "device ms",
              "idle us", "submit us", "% of reads");
  for (const std::uint32_t batch : {1U, 8U, 16U, 32U, 64U, 128U, 256U}) {
    if (std::uint64_t{batch} * (160 / kBlock + 1) > plan.num_blocks) continue;
    const Timed timed =
        run(context, plan.model, Arrays(batch, 1, 159, true), batch > 64 ? 60 : 120);
    std::printf("batch %-16u %10.3f %10.3f %10.1f %10.1f %11.1f%%\n", batch, timed.step_ms,
                timed.device_ms, timed.idle_us, timed.submit_us, 100 * floor_ms / timed.step_ms);
  }
  for (const auto& [seqs, length] : {std::pair{1U, 32U}, {1U, 512U}, {1U, 2048U}, {8U, 2048U}}) {
    const Arrays arrays(seqs, length, 0, false);
    if (arrays.tables.size() > plan.num_blocks) continue;
    const int count = deterministic ? 2 : length * seqs > 4096 ? 5 : 20;
    const Timed timed = run(context, plan.model, arrays, count);
    std::printf("prefill %u x %-10u %10.3f ms %12.0f tok/s\n", seqs, length, timed.step_ms,
                seqs * length / timed.step_ms * 1e3);
  }
  return 0;
}
