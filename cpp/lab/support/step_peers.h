// What a step is held against: vLLM 0.24.0 (FlashAttention 3, CUDA graphs, offline) and our probe
// of a step's structure, bf16, context 160. Measured on an H200 (docs/gpu.md), so of no use as a
// ceiling on other cards.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace inferno::lab {

struct StepPeer {
  std::string_view model;
  double vllm_ms_1, vllm_ms_8, vllm_ms_64, vllm_ms_256;  // of decode steps of so many sequences
  double vllm_prefill;                                   // tokens/s of 8 x 2048
  double probe_ms;                                       // of one sequence
};

inline constexpr StepPeer kStepPeers[] = {
    {"1b", 1.88, 1.74, 2.35, 5.79, 212700, 0.734},
    {"8b", 4.89, 5.06, 6.05, 10.9, 41300, 3.75},
    {"7b", 4.57, 4.94, 7.17, 16.9, 44300, 3.57},
};

constexpr const StepPeer& step_peer(std::string_view model) {
  for (const StepPeer& peer : kStepPeers) {
    if (peer.model == model) return peer;
  }
  return kStepPeers[1];
}

constexpr std::optional<double> vllm_decode_ms(const StepPeer& peer, std::uint32_t num_seqs) {
  switch (num_seqs) {
    case 1:
      return peer.vllm_ms_1;
    case 8:
      return peer.vllm_ms_8;
    case 64:
      return peer.vllm_ms_64;
    case 256:
      return peer.vllm_ms_256;
    default:
      return std::nullopt;
  }
}

}  // namespace inferno::lab
