#include "exact.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace moe_export {
namespace {

// `depth` rows of 64 weights.
void dequantize(Format format, const uint8_t* block, int64_t depth, float* weights) {
  const uint8_t* codes = block + kScaleBytes;
  for (int64_t c = 0; c < kColumns; ++c) {
    uint16_t half;
    std::memcpy(&half, block + 2 * c, sizeof half);
    const float scale = float_of_half(half);
    for (int64_t d = 0; d < depth; ++d) {
      int32_t value;
      if (format == Format::kInt8) {
        value = codes[(d / 4 * kColumns + c) * 4 + d % 4] - 128;
      } else {
        const uint8_t pair = codes[(d / 8 * kColumns + c) * 4 + d % 4];
        value = (d % 8 < 4 ? pair & 15 : pair >> 4) - 8;
      }
      weights[d * kColumns + c] = static_cast<float>(value) * scale;
    }
  }
}

}  // namespace

void exact_product(const Kernels& kernels, Format format, const uint8_t* panel, int64_t depth,
                   const void* const* rows, int count, float* sums) {
  const int64_t block_bytes = format == Format::kInt8 ? kInt8BlockBytes : kInt4BlockBytes;
  const size_t size = static_cast<size_t>(count) * kColumns;
  std::memset(sums, 0, size * sizeof(float));
  for (int64_t first = 0; first < depth; first += kBlock, panel += block_bytes) {
    const int64_t here = std::min(kBlock, depth - first);
    alignas(64) float weights[kBlock * kColumns];
    dequantize(format, panel, here, weights);
    const void* block_rows[kTile];
    for (int row = 0; row < count; ++row) {
      block_rows[row] = static_cast<const float*>(rows[row]) + first;
    }
    alignas(64) float block_sums[kTile * kColumns];
    kernels.product[static_cast<int>(Format::kFloat32)](reinterpret_cast<const uint8_t*>(weights),
                                                        here, block_rows, count, block_sums);
    for (size_t i = 0; i < size; ++i) sums[i] += block_sums[i];
  }
}

}  // namespace moe_export
