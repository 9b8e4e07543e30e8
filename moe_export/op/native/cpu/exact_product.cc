#include "cpu/exact_product.h"

#include <algorithm>
#include <cstring>

#include "common/half.h"

namespace moe_export {
namespace {

// Decodes `depth` rows of 64 weights.
void dequantize(Format format, const uint8_t* block, int64_t depth, float* weights) {
  const uint8_t* codes = block + codes_offset(format);
  const bool four_bits = has_four_bits(format);
  for (int64_t c = 0; c < kColumns; ++c) {
    uint16_t half;
    std::memcpy(&half, block + 2 * c, sizeof half);
    const float scale = float_of_half(half);
    const int32_t zero = has_zero_points(format) ? block[kScaleBytes + c] : zero_code(format);
    for (int64_t d = 0; d < depth; ++d) {
      const uint8_t byte = codes[(d / (four_bits ? 8 : 4) * kColumns + c) * 4 + d % 4];
      const int32_t code = !four_bits ? byte : d % 8 < 4 ? byte & 15 : byte >> 4;
      weights[d * kColumns + c] = static_cast<float>(code - zero) * scale;
    }
  }
}

}  // namespace

void exact_product(const Kernels& kernels, Format format, const uint8_t* panel, int64_t depth,
                   const void* const* rows, int count, int sides, float* sums) {
  const size_t size = static_cast<size_t>(count) * kColumns;
  std::memset(sums, 0, size * sizeof(float));
  for (int64_t first = 0; first < depth; first += kBlock, panel += block_bytes(format)) {
    const int64_t step_depth = std::min(kBlock, depth - first);
    alignas(64) float weights[kBlock * kColumns];
    dequantize(format, panel, step_depth, weights);
    const void* block_rows[2 * kTile];
    for (int row = 0; row < sides * count; ++row) {
      block_rows[row] = static_cast<const float*>(rows[row]) + first;
    }
    alignas(64) float block_sums[kTile * kColumns];
    kernels.products[sides - 1][Format::kFloat32](reinterpret_cast<const uint8_t*>(weights),
                                                  step_depth, block_rows, count, block_sums);
    for (size_t i = 0; i < size; ++i) sums[i] += block_sums[i];
  }
}

}  // namespace moe_export
