// Goal: where more rows pass than a thread's cache holds, products are what they are alone. Method:
// so many rows that there are several parts, each read block by block, against single rows.
#include "ops/linear/tiled_linear.h"

#include "ops/base/test_support.h"
#include "ops/linear/packed_weights.h"

namespace inferno::ops::test {

TEST_CASE("rows that a cache does not hold have the bits that they have alone") {
  constexpr std::uint32_t kRows = 700;
  constexpr std::uint32_t kOutputs = 32 * 19 + 5;
  constexpr std::uint32_t kColumns = 2100;
  for_each_isa([](Isa isa) {
    if (isa == Isa::Portable) return;
    for (const WeightFormat& format : {WeightFormat{Dtype::BF16}, WeightFormat{WeightKind::Int8},
                                       WeightFormat{WeightKind::Int4, 128}}) {
      CAPTURE(std::string(weight_kind_name(format.kind)));
      Device device(isa, 2, linear_workspace_bytes(kRows, kColumns, 2));
      Random random(3);
      const WeightShape shape{kOutputs, kColumns, format};
      const std::vector<std::byte> rows =
          encode(random.normals(std::size_t{kOutputs} * kColumns), Dtype::BF16);
      AlignedBytes packed(packed_bytes(shape));
      pack_rows(device.context(), shape, packed.data(), 0, {rows.data(), Dtype::BF16, kOutputs});
      const std::vector<float> x = random.normals(std::size_t{kRows} * kColumns);
      std::vector<float> out(std::size_t{kRows} * kOutputs);
      linear(device.context(),
             {x.data(), kRows, {packed.data(), shape}, nullptr, out.data(), false});
      for (std::uint32_t row = 0; row < kRows; row += 23) {
        std::vector<float> alone(kOutputs);
        linear(device.context(), {x.data() + std::size_t{row} * kColumns,
                                  1,
                                  {packed.data(), shape},
                                  nullptr,
                                  alone.data(),
                                  false});
        const std::span together(out.data() + std::size_t{row} * kOutputs, kOutputs);
        REQUIRE(same_bits(together, alone));
      }
    }
  });
}

#if defined(INFERNO_X86_KERNELS)
TEST_CASE("VNNI gives the same bits in both of its encodings") {
  if (!isa_available(Isa::Avx512Bf16) || !has_vex_vnni()) {
    MESSAGE("left out: this machine has one encoding at most");
    return;
  }
  constexpr std::uint32_t kRows = 17;
  constexpr std::uint32_t kOutputs = 32 * 3 + 5;
  constexpr std::uint32_t kColumns = 700;
  for (const WeightFormat& format :
       {WeightFormat{WeightKind::Int8}, WeightFormat{WeightKind::Int4, 32},
        WeightFormat{WeightKind::Mxfp4, 32}}) {
    Device device(Isa::AvxVnni, 2, linear_workspace_bytes(kRows, kColumns, 2));
    Random random(4);
    const WeightShape shape{kOutputs, kColumns, format};
    AlignedBytes packed(packed_bytes(shape));
    for (std::byte& byte : packed.span()) byte = std::byte(random.integer(0, 63));
    const std::vector<float> x = random.normals(std::size_t{kRows} * kColumns);
    std::vector<float> out[2];
    for (std::vector<float>& each : out) {
      each.resize(std::size_t{kRows} * kOutputs);
      const LinearKernels& kernels = &each == out ? integer_kernels_avxvnni(format.kind)
                                                  : integer_kernels_avx512vnni(format.kind);
      tiled_linear(device.context(),
                   {x.data(), kRows, {packed.data(), shape}, nullptr, each.data(), false}, kernels);
    }
    CHECK(same_bits(out[0], out[1]));
  }
}
#endif

}  // namespace inferno::ops::test
