#include "ops/linear/source_rows.h"

#include "ops/linear/quantize.h"

namespace inferno::ops {

SourceRows::SourceRows(const RowSource& source, std::uint32_t num_columns,
                       const WeightFormat& wanted)
    : source_(source), num_columns_(num_columns), wanted_(wanted) {
  if (source.format == wanted && !wanted.is_quantized()) return;
  codes_.resize(num_columns);
  values_.resize(num_columns);
  scales_.resize(num_groups(wanted, num_columns));
}

const std::byte* SourceRows::bytes(std::size_t row) const {
  return source_.data + row * source_row_bytes(source_.format, num_columns_);
}

CodedRow SourceRows::scales(std::size_t row) const {
  const std::size_t first = row * num_groups(source_.format, num_columns_);
  const float* offsets = source_.offsets == nullptr ? nullptr : source_.offsets + first;
  return {nullptr, source_.scales + first, offsets};
}

const float* SourceRows::values(std::size_t row) {
  if (source_.format.is_quantized()) {
    dequantize(own_codes(row), source_.format, num_columns_, values_.data());
  } else {
    const Dtype dtype = source_.format.dtype();
    for (std::uint32_t k = 0; k < num_columns_; ++k) {
      values_[k] = load_element(bytes(row), dtype, k);
    }
  }
  return values_.data();
}

CodedRow SourceRows::codes(std::size_t row) {
  if (source_.format.is_quantized()) return own_codes(row);
  quantize_row(values(row), num_columns_, wanted_, {codes_.data(), scales_.data()});
  return {codes_.data(), scales_.data(), nullptr};
}

CodedRow SourceRows::own_codes(std::size_t row) {
  const auto* stored = reinterpret_cast<const std::uint8_t*>(bytes(row));
  const auto [none, scales, offsets] = this->scales(row);
  if (weight_bits(source_.format.kind) == 8) return {stored, scales, offsets};
  for (std::uint32_t k = 0; k < num_columns_; ++k) {
    codes_[k] = stored[k / 2] >> (k % 2 * 4) & 15U;
  }
  return {codes_.data(), scales, offsets};
}

}  // namespace inferno::ops
