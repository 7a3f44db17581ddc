// The one layout of a quantized matrix on a GPU, made once at load: codes lie where a warp's lanes
// want them for tensor cores, so that a lane gets its part of a matrix with loads of 16 bytes.
//
// A matrix [N, K] is cut into strips of 8 rows, a strip into spans of 128 columns, each of them
// contiguous, strip after strip. A span has its codes, of 16 columns ("a step") after the other.
// In a step lane l of a warp has row l / 4 and of that two pairs of columns, 2 (l % 4) and + 1, and
// the same 8 further, as the first factor of mma.m16n8k16 has them (cuda_device.cuh):
//   8 bits: [row][step / 4][lane % 4][step % 4][column of a pair][pair]  bytes, a lane's 16
//   together
//   4 bits: [lane][step / 2][column of a pair][pair][step % 2]           halves of bytes, lower
//   first, so that bytes' lower halves are a step's codes, and their upper ones the next step's;
//   those of int4 less their zero point, as two's complement
// A row's 16 bytes numbered c lie at c ^ row, as the copy engine's swizzle of 128 bytes would leave
// them, so that lanes meet in few banks of shared memory. Where a row has one scale, codes of 8
// bits have no swizzle and a strip no spans: rows are contiguous, [N, K] with columns of a span in
// the order above, as cuBLASLt multiplies them with inputs in the same order
// (quantize_inputs_cuda.h). Scales come as words of 32 bits: a float, or, of a format with offsets,
// the scale as f16 in the upper half, as GPTQ and AWQ keep it, and in the lower one offset / scale
// as bf16, by which codes are shifted: a weight is scale * (value(code) - zero_point - shift). A
// shift that is a whole number up to 256, as that of any zero point in 4 bits, is exact.
//   a scale for each group: [group][row] words after the codes of each span
//   a scale for each row:   [N] words behind the last strip
// N is padded to whole strips and K to whole spans, with weights of zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/linear/packed_codes.h"

namespace inferno::ops::cuda {

inline constexpr std::uint32_t kStripRows = 8;
inline constexpr std::uint32_t kSpanColumns = 128;
inline constexpr std::uint32_t kScaleBytes = 4;  // of a scale word

struct CodeLayout {
  explicit CodeLayout(const WeightShape& shape) noexcept;

  std::uint32_t num_strips;
  std::uint32_t num_spans;   // of a strip
  std::uint32_t code_bytes;  // of a span
  std::uint32_t groups;      // of a span; 0: a row has one scale
  bool row_major;            // no spans: the rows are contiguous
  std::size_t span_bytes;
  std::size_t strip_bytes;
  std::size_t row_scales_at;  // where they begin, if rows have them
  std::size_t bytes;          // of all, a multiple of 256

  // A group has 16 << this columns, of a span.
  std::uint32_t log_group_steps() const noexcept;
};

// offset: 0 where the format has none.
std::uint32_t scale_word(float scale, float offset, bool offsets) noexcept;

// Whether the GPU's kernels read such weights: fp8 and int8 with a scale for each row or 128
// columns, int4 also for each 32 or 64, MXFP4 for each 32.
bool has_code_layout(const WeightFormat& format) noexcept;

// Where strips are packed to: those of a part of the matrix.
struct PackedStrips {
  std::byte* strips;          // [count] of strip_bytes
  std::uint32_t* row_scales;  // [count, 8], if rows have one
};

// Packs rows of a matrix, a strip at a time; one for each thread.
class StripPacker {
 public:
  explicit StripPacker(const WeightShape& shape);

  // The source's rows 8 * strip and following, those that it has, as strip number `place` of `to`.
  // Elements are quantized.
  void pack(const RowSource& source, std::uint32_t strip, std::uint32_t place,
            const PackedStrips& to);

 private:
  void mend(CodedRow& row);
  void pack_row(const CodedRow& row, std::uint32_t lane_row, std::byte* strip);
  void pack_bytes(const std::uint8_t* codes, std::uint32_t swizzle, std::byte* to) const;
  void pack_halves(const std::uint8_t* codes, std::uint32_t lane_row, std::byte* span) const;

  WeightShape shape_;
  CodeLayout layout_;
  std::vector<std::uint8_t> codes_;  // of a row, one to a byte, and its padding
  std::vector<float> scales_;        // [groups]
};

// Throws std::invalid_argument where rows cannot become strips [first_row / 8, …) of a matrix: they
// begin within one or end within one that is not the last, do not fit, or have codes of another
// format.
void check_strips(const WeightShape& shape, std::uint32_t first_row, const RowSource& source);

}  // namespace inferno::ops::cuda
