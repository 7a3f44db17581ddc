// Runs one op at a time for benches/ops.rs, in a Llama-3.2-1B shape on the best instruction set:
// reads lines `<op> <tokens> <rounds>`, answers each with the nanoseconds of all rounds together.
//   op_bench [threads]
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ops/embed/embed.h"
#include "ops/glu/glu.h"
#include "ops/kv_write/kv_write.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"

namespace {

using namespace inferno::ops;

constexpr std::uint32_t kMaxTokens = 512;
constexpr std::uint32_t kHidden = 2048;
constexpr std::uint32_t kIntermediate = 8192;
constexpr std::uint32_t kHeads = 32;
constexpr std::uint32_t kKvHeads = 8;
constexpr std::uint32_t kHeadDim = 64;
constexpr std::uint32_t kVocabulary = 128256;
constexpr std::uint32_t kBlockSize = 16;

// Of bytes, with the alignment that weights and blocks have.
class Block {
 public:
  explicit Block(std::size_t bytes) : bytes_(bytes + kAlignment, std::byte{0x3c}) {}
  std::byte* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    return bytes_.data() + (kAlignment - address % kAlignment) % kAlignment;
  }

 private:
  std::vector<std::byte> bytes_;
};

// What the ops work on; values are plain, as no op's time depends on them.
struct Inputs {
  std::vector<float> x = std::vector<float>(kMaxTokens * kHidden, 0.5F);
  std::vector<float> v = std::vector<float>(kMaxTokens * kKvHeads * kHeadDim, 0.0F);
  std::vector<float> out = std::vector<float>(kMaxTokens * kIntermediate);
  std::vector<float> gate_up = std::vector<float>(kMaxTokens * 2 * kIntermediate, 0.5F);
  std::vector<float> norm = std::vector<float>(kHidden, 1.0F);
  std::vector<float> inv_freq = std::vector<float>(kHeadDim / 2);
  std::vector<float> cos_sin = std::vector<float>(kMaxTokens * kHeadDim);
  std::vector<std::uint32_t> positions;
  std::vector<std::uint32_t> token_ids;
  WeightShape table_shape{kVocabulary, kHidden, Dtype::BF16};
  Block table{packed_bytes(table_shape)};
  KvLayer layer{nullptr,    nullptr,  Dtype::BF16, kMaxTokens / kBlockSize,
                kBlockSize, kKvHeads, kHeadDim};
  Block keys{kv_block_bytes(layer) * layer.num_blocks};
  Block values{kv_block_bytes(layer) * layer.num_blocks};

  explicit Inputs(const OpContext& context) {
    layer.k = keys.data();
    layer.v = values.data();
    for (std::uint32_t i = 0; i < kMaxTokens; ++i) {
      positions.push_back(i);
      token_ids.push_back(i * 7919U % kVocabulary);  // far apart, as words are
    }
    for (std::uint32_t i = 0; i < kHeadDim / 2; ++i) {
      inv_freq[i] = std::pow(500000.0F, -2.0F * static_cast<float>(i) / kHeadDim);
    }
    rope_angles(context, {inv_freq, 1.0F, positions, cos_sin.data()});
  }
};

using Op = std::function<void(std::uint32_t num_tokens)>;

std::map<std::string, Op> ops(const OpContext& context, Inputs& in) {
  std::map<std::string, Op> ops;
  ops["rms_norm"] = [&](std::uint32_t tokens) {
    rms_norm(context, {in.x.data(), in.norm.data(), 1e-5F, tokens, kHidden, in.out.data()});
  };
  ops["rope"] = [&](std::uint32_t tokens) {
    rope(context,
         {in.x.data(), kHeads * kHeadDim, in.cos_sin.data(), tokens, kHeads, kHeadDim, kHeadDim});
  };
  ops["glu"] = [&](std::uint32_t tokens) {
    glu(context, {in.gate_up.data(), tokens, kIntermediate, {}, in.out.data()});
  };
  ops["embed"] = [&](std::uint32_t tokens) {
    embed(context,
          {{in.table.data(), in.table_shape}, {in.token_ids.data(), tokens}, 1.0F, in.out.data()});
  };
  ops["kv_write"] = [&](std::uint32_t tokens) {
    kv_write(context, in.layer,
             {in.x.data(), in.v.data(), kKvHeads * kHeadDim, {in.positions.data(), tokens}});
  };
  return ops;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  inferno::ThreadPool threads(argc > 1 ? static_cast<std::uint32_t>(std::stoul(argv[1])) : cores);
  const OpContext context{threads, best_isa(), {}};
  Inputs inputs(context);
  const std::map<std::string, Op> known = ops(context, inputs);
  std::string name;
  std::uint32_t tokens = 0;
  std::uint64_t rounds = 0;
  while (std::cin >> name >> tokens >> rounds) {
    const auto op = known.find(name);
    if (op == known.end() || tokens > kMaxTokens) {
      std::cerr << "op_bench: no " << name << " of " << tokens << " tokens\n";
      return 1;
    }
    const auto start = std::chrono::steady_clock::now();
    for (std::uint64_t round = 0; round < rounds; ++round) op->second(tokens);
    const auto took = std::chrono::steady_clock::now() - start;
    std::cout << std::chrono::nanoseconds(took).count() << std::endl;
  }
  return 0;
}
