// Goal: a source's rows are the same whichever way they are asked for. Method: codes of 8 and of 4
// bits, and elements, against the meaning of each, written out.
#include "ops/linear/source_rows.h"

#include "ops/base/test_support.h"
#include "ops/linear/quantize.h"

namespace inferno::ops::test {

TEST_CASE("codes come one to a byte, and as the numbers that they stand for") {
  // Two rows of three columns in four bits, each with a byte of its own at its end.
  const std::byte data[] = {std::byte{0x21}, std::byte{0x0f}, std::byte{0x98}, std::byte{0x07}};
  const float scales[] = {2, 0.5F};
  const float offsets[] = {1, -3};
  const RowSource source{data, {WeightKind::Int4, 0, true}, 2, scales, offsets};
  SourceRows rows(source, 3, source.format);
  const CodedRow first = rows.codes(0);
  CHECK(std::vector<int>(first.codes, first.codes + 3) == std::vector<int>{1, 2, 15});
  CHECK(*first.scales == 2);
  CHECK(*first.offsets == 1);
  const float* values = rows.values(1);
  CHECK(std::vector<float>(values, values + 3) == std::vector<float>{3, 3.5F, 2.5F});
}

TEST_CASE("codes of a byte are not copied") {
  const std::byte data[] = {std::byte{0x7f}, std::byte{0x80}};
  const float scale = 0.5F;
  const RowSource source{data, WeightKind::Int8, 1, &scale};
  SourceRows rows(source, 2, Dtype::BF16);
  CHECK(reinterpret_cast<const std::byte*>(rows.codes(0).codes) == data);
  CHECK(rows.values(0)[1] == -64);
}

TEST_CASE("elements become the codes that quantizing makes of them") {
  Random random(1);
  const std::vector<float> values = random.normals(2 * 70);
  const auto data = encode(values, Dtype::F32);
  const RowSource source{data.data(), Dtype::F32, 2};
  const WeightFormat wanted{WeightKind::Int4, 32};
  SourceRows rows(source, 70, wanted);
  std::vector<std::uint8_t> codes(70);
  std::vector<float> scales(3);
  quantize_row(values.data() + 70, 70, wanted, {codes.data(), scales.data()});
  const CodedRow row = rows.codes(1);
  CHECK(std::equal(codes.begin(), codes.end(), row.codes));
  CHECK(std::equal(scales.begin(), scales.end(), row.scales));
  CHECK(row.offsets == nullptr);
  CHECK(rows.values(0)[5] == values[5]);
}

}  // namespace inferno::ops::test
