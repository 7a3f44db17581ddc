// A run of neighbouring logits, as the kernels of every instruction set get it. Plain data, as in
// attention_task.h.
#pragma once

#include <cstddef>

namespace inferno::ops {

struct SoftcapRow {
  float* logits;
  std::size_t size;
  float scale;
  float cap;  // above 0
};

using SoftcapKernel = void (*)(const SoftcapRow& row);

void softcap_avx2(const SoftcapRow& row);
void softcap_avx512(const SoftcapRow& row);

}  // namespace inferno::ops
