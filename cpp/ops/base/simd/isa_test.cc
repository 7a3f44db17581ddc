// Goal: what is said to be available is. Method: the order among the sets.
#include "ops/base/simd/isa.h"

#include <string_view>

#include "ops/base/test_support.h"

namespace inferno::ops::test {

TEST_CASE("the portable code runs everywhere and the best set is available") {
  CHECK(isa_available(Isa::Portable));
  CHECK(isa_available(best_isa()));
  if (isa_available(Isa::AvxVnni)) CHECK(isa_available(Isa::Avx2));
  if (isa_available(Isa::Avx512Bf16)) CHECK(isa_available(Isa::Avx2));
  if (isa_available(Isa::Amx)) CHECK(isa_available(Isa::Avx512Bf16));
  CHECK(std::string_view(isa_name(Isa::Portable)) == "portable");
  CHECK(std::string_view(isa_name(Isa::Avx2)) == "avx2");
  CHECK(std::string_view(isa_name(Isa::AvxVnni)) == "avx_vnni");
  CHECK(std::string_view(isa_name(Isa::Avx512Bf16)) == "avx512_bf16");
  CHECK(std::string_view(isa_name(Isa::Amx)) == "amx");
}

}  // namespace inferno::ops::test
