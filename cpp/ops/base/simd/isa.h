// Instruction sets of the CPU backend, chosen at run time.
#pragma once

#include <cstdint>

namespace inferno::ops {

enum class Isa : std::uint8_t {
  Portable,    // the baseline of the target; the oracle of every op
  Avx2,        // AVX2, FMA and F16C
  AvxVnni,     // VNNI on vectors of 256 bits in either encoding, with everything of Avx2
  Avx512Bf16,  // AVX-512 F, BW, DQ, VL, BF16 and VNNI, with everything of Avx2
  Amx,         // AMX tiles of bf16 and int8, with everything of Avx512Bf16
};

// From the narrowest to the widest.
inline constexpr Isa kIsas[] = {Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Bf16, Isa::Amx};

// Whether the processor has `isa`, the operating system keeps its registers, and this build has its
// code. Asking for Amx asks the system for the tiles' registers, for all threads of the process.
bool isa_available(Isa isa) noexcept;

// Whether the processor has VNNI in the encoding of AVX-VNNI; else AvxVnni is that of AVX-512 VL.
bool has_vex_vnni() noexcept;

// The widest one that is available.
Isa best_isa() noexcept;

const char* isa_name(Isa isa) noexcept;

// What an op has for vectors; an instruction set that it has nothing for runs the one below.
template <typename Kernel>
struct VectorKernels {
  Kernel portable;
  Kernel avx2 = nullptr;
  Kernel avx512 = nullptr;

  constexpr Kernel of(Isa isa) const noexcept {
    if (isa >= Isa::Avx512Bf16 && avx512 != nullptr) return avx512;
    return isa >= Isa::Avx2 && avx2 != nullptr ? avx2 : portable;
  }
};

}  // namespace inferno::ops
