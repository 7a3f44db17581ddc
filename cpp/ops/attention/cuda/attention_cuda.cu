#include <stdexcept>
#include <string>

#include "ops/attention/cuda/attention_cuda.h"
#include "ops/attention/cuda/attention_decode.h"
#include "ops/attention/cuda/attention_prefill.h"

namespace inferno::ops::cuda {
namespace {

template <typename... Values>
bool is_one_of(std::uint32_t value, Values... values) {
  return ((value == static_cast<std::uint32_t>(values)) || ...);
}

[[noreturn]] void refuse(const std::string& text) {
  throw std::invalid_argument("other: attention: " + text);
}

}  // namespace

void check_attention_cuda(const KvLayerCuda& layer, std::uint32_t num_heads) {
  if (layer.dtype != Dtype::BF16 && layer.dtype != Dtype::F16) {
    refuse(std::string("expected KV blocks of bf16 or f16, got ") + dtype_name(layer.dtype));
  }
  if (!is_one_of(layer.head_dim, 32, 64, 96, 128, 256)) {
    refuse("expected head_dim 32, 64, 96, 128 or 256, got " + std::to_string(layer.head_dim));
  }
  if (!is_one_of(layer.block_size, 16, 32, 64, 128)) {
    refuse("expected block_size 16, 32, 64 or 128, got " + std::to_string(layer.block_size));
  }
  if (layer.num_kv_heads == 0 || num_heads == 0 || num_heads % layer.num_kv_heads != 0) {
    refuse("expected num_heads to be a multiple of num_kv_heads, got " + std::to_string(num_heads) +
           " and " + std::to_string(layer.num_kv_heads));
  }
  if (num_heads / layer.num_kv_heads > kPrefillRows) {
    refuse("expected at most " + std::to_string(kPrefillRows) + " heads to a KV head, got " +
           std::to_string(num_heads / layer.num_kv_heads));
  }
}

std::uint32_t attention_tile_rows(std::uint32_t num_heads, std::uint32_t num_kv_heads) {
  return kPrefillRows / (num_heads / num_kv_heads);
}

std::size_t attention_cuda_workspace_bytes(std::uint32_t head_dim) {
  return attention_decode_workspace_bytes(head_dim);
}

void attention_cuda(const CudaOp& op, const KvLayerCuda& layer, const AttentionCudaArgs& args) {
  check_attention_cuda(layer, args.num_heads);
  if (!(args.rule.scale > 0.0F) || !(args.rule.softcap >= 0.0F)) {
    refuse("expected a scale above 0 and a softcap of at least 0, got " +
           std::to_string(args.rule.scale) + " and " + std::to_string(args.rule.softcap));
  }
  if (args.cos_sin != nullptr && args.num_tiles > 0) {
    refuse("expected q, k and v as the product left them of decodes only, got " +
           std::to_string(args.num_tiles) + " tiles");
  }
  if (args.num_tiles > 0) attention_prefill(op, layer, args);
  if (args.num_decodes > 0) attention_decode(op, layer, args);
}

}  // namespace inferno::ops::cuda
