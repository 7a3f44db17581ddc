#include "engine/cuda/cuda_uploader.h"

#include <algorithm>
#include <cstring>

#include "ops/cuda/cuda_op.h"
#include "ops/linear/cuda/code_layout.h"
#include "ops/linear/source_rows.h"

namespace inferno::engine {
namespace {

using ops::cuda::check;

constexpr std::uint64_t kUploadBytes = 64 << 20;  // of one part
constexpr std::uint64_t kCopyBytes = 2 << 20;     // that one thread copies at once

std::uint32_t divide_up(std::uint64_t a, std::uint64_t b) {
  return static_cast<std::uint32_t>((a + b - 1) / b);
}

}  // namespace

CudaUploader::Part& CudaUploader::next_part() {
  Part& part = parts_[next_++ % parts_.size()];
  if (part.buffer == nullptr) part.buffer = std::make_unique<PinnedBuffer>(kUploadBytes);
  part.fetched.wait();
  return part;
}

void CudaUploader::copy(std::byte* target, const Part& part, std::uint64_t offset,
                        std::uint64_t bytes) {
  check(
      cudaMemcpyAsync(target, part.buffer->data() + offset, bytes, cudaMemcpyHostToDevice, stream_),
      "cudaMemcpyAsync");
}

void CudaUploader::upload_same(std::byte* target, const std::byte* source, std::uint64_t bytes) {
  for (std::uint64_t first = 0; first < bytes; first += kUploadBytes) {
    Part& part = next_part();
    const std::uint64_t count = std::min(kUploadBytes, bytes - first);
    threads_.parallel_for(divide_up(count, kCopyBytes), [&](std::uint32_t chunk, std::uint32_t) {
      const std::uint64_t begin = chunk * kCopyBytes;
      std::memcpy(part.buffer->data() + begin, source + first + begin,
                  std::min(kCopyBytes, count - begin));
    });
    copy(target + first, part, 0, count);
    part.fetched.record(stream_);
  }
}

void CudaUploader::upload_elements(const MatrixRows& target, const ops::RowSource& source) {
  const ops::WeightShape& matrix = target.matrix;
  const std::uint64_t row_bytes = matrix.num_columns * ops::dtype_bytes(matrix.dtype());
  std::byte* to = target.data + target.first_row * row_bytes;
  if (source.format == matrix.format) {
    return upload_same(to, source.data, source.num_rows * row_bytes);
  }
  const auto at_once =
      static_cast<std::uint32_t>(std::max<std::uint64_t>(1, kUploadBytes / row_bytes));
  const auto by_thread =
      static_cast<std::uint32_t>(std::max<std::uint64_t>(1, kCopyBytes / row_bytes));
  for (std::uint32_t first = 0; first < source.num_rows; first += at_once) {
    Part& part = next_part();
    const std::uint32_t count = std::min(at_once, source.num_rows - first);
    threads_.parallel_for(divide_up(count, by_thread), [&](std::uint32_t chunk, std::uint32_t) {
      ops::SourceRows rows(source, matrix.num_columns, matrix.format);
      const std::uint32_t end = std::min(count, (chunk + 1) * by_thread);
      for (std::uint32_t row = chunk * by_thread; row < end; ++row) {
        const float* values = rows.values(first + row);
        std::byte* out = part.buffer->data() + row * row_bytes;
        for (std::uint32_t k = 0; k < matrix.num_columns; ++k) {
          ops::store_element(out, matrix.dtype(), k, values[k]);
        }
      }
    });
    copy(to + first * row_bytes, part, 0, count * row_bytes);
    part.fetched.record(stream_);
  }
}

void CudaUploader::upload_strips(const MatrixRows& target, const ops::RowSource& source) {
  using ops::cuda::kStripRows;
  const ops::WeightShape& matrix = target.matrix;
  ops::cuda::check_strips(matrix, target.first_row, source);
  const ops::cuda::CodeLayout layout(matrix);
  constexpr std::uint64_t kScalesBytes = kStripRows * ops::cuda::kScaleBytes;  // of a strip
  const bool row_scales = layout.groups == 0;
  const auto at_once =
      static_cast<std::uint32_t>(kUploadBytes / (layout.strip_bytes + kScalesBytes));
  const std::uint32_t strips = divide_up(source.num_rows, kStripRows);
  const std::uint64_t first_strip = target.first_row / kStripRows;
  for (std::uint32_t first = 0; first < strips; first += at_once) {
    Part& part = next_part();
    const std::uint32_t count = std::min(at_once, strips - first);
    const std::uint64_t scales_at = count * layout.strip_bytes;
    const ops::cuda::PackedStrips packed{
        part.buffer->data(), reinterpret_cast<std::uint32_t*>(part.buffer->data() + scales_at)};
    threads_.parallel_for(count, [&](std::uint32_t strip, std::uint32_t) {
      ops::cuda::StripPacker(matrix).pack(source, first + strip, strip, packed);
    });
    copy(target.data + (first_strip + first) * layout.strip_bytes, part, 0, scales_at);
    if (row_scales) {
      copy(target.data + layout.row_scales_at + (first_strip + first) * kScalesBytes, part,
           scales_at, count * kScalesBytes);
    }
    part.fetched.record(stream_);
  }
}

void CudaUploader::finish() {
  for (Part& part : parts_) {
    part.fetched.wait();
    part.buffer.reset();
  }
}

}  // namespace inferno::engine
