// The layout of the CPU kernels: a matrix as panels of 64 columns.
//
// The unit of all work is a panel: 64 columns of a [depth, columns] matrix. In a panel of gate and
// up, 32 columns belong to gate and the next 32 to the same columns of up, so one product gives
// both factors of a hidden unit. Without a gate, all 64 belong to up.
//
// A panel of floats is [depth][64]. A quantized panel is one block per 32 of the depth. A block is
// 64 scales in float16, then 64 zero points of one byte in the formats that have them, then codes:
//
//   8 bits: [8 steps][64 columns][4 of the depth] bytes
//   4 bits: [4 steps][64 columns][4 of the depth] bytes; the low nibble holds depth 8 * step +
//   0..3,
//           the high nibble depth 8 * step + 4..7
//
// Codes of int8 and int4 are stored unsigned (plus 128 or 8), so that all codes can be the unsigned
// operand of dot product instructions. Codes beyond the depth are those of zero.
#pragma once

#include "common/formats.h"

namespace moe_export {

constexpr int64_t kColumns = 64;

// Hidden units that a panel of gate and up gives.
constexpr int64_t units_per_panel(Activation activation) {
  return is_gated(activation) ? kColumns / 2 : kColumns;
}

constexpr int64_t kBlock = 32;
constexpr int64_t kScaleBytes = kColumns * 2;

// Offset of the codes in a block.
constexpr int64_t codes_offset(Format format) {
  return kScaleBytes + (has_zero_points(format) ? kColumns : 0);
}

constexpr int64_t block_bytes(Format format) {
  return codes_offset(format) + kBlock * kColumns * facts_of(format).bits / 8;
}

// The stored code of 0 in a format without zero points.
constexpr uint8_t zero_code(Format format) {
  return format == Format::kInt8 ? 128 : format == Format::kInt4 ? 8 : 7;
}

constexpr int64_t panel_bytes(Format format, int64_t depth) {
  if (is_quantized(format)) return round_up(depth, kBlock) / kBlock * block_bytes(format);
  return depth * kColumns * facts_of(format).bits / 8;
}

// 32 activations in int8 for the product with a quantized panel: x = scale * codes. `sum` is the
// sum of the codes. It corrects for the weights' codes being unsigned or having a zero point: each
// weight of a column is its code less the same number.
struct QuantizedBlock {
  int8_t codes[kBlock];
  float scale;
  int32_t sum;
};

}  // namespace moe_export
