// How weights are stored: in the model, and in the kernels' own layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_export {

// The numbers of ONNX.
enum Type : int32_t {
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
  kUint4 = 21,
  kInt4 = 22,
};

// In the order of `FORMATS` in op/spec.py.
enum class Format { kFloat32, kFloat16, kBfloat16, kInt8, kInt4, kUint8, kUint4, kNf4 };
constexpr int kNumFormats = 8;

constexpr bool is_quantized(Format format) { return format >= Format::kInt8; }

constexpr bool has_zero_points(Format format) {
  return format == Format::kUint8 || format == Format::kUint4;
}

// Whether the codes are numbers that can meet activations in int8; those of nf4 are places in a
// table of floats.
constexpr bool has_integer_codes(Format format) {
  return is_quantized(format) && format != Format::kNf4;
}

constexpr bool has_four_bits(Format format) {
  return format == Format::kInt4 || format == Format::kUint4 || format == Format::kNf4;
}

// What lies between an expert's matrices, in the order of `activation` in op/spec.py. The gated
// ones come first.
enum class Activation { kSwiglu, kGeglu, kSilu, kRelu, kRelu2 };
constexpr int kNumActivations = 5;

constexpr bool is_gated(Activation activation) { return activation <= Activation::kGeglu; }

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The unit of all work is a panel: 64 columns of a [depth, columns] matrix. In a panel of gate and
// up, 32 columns are of gate and the 32 after them the same ones of up, so that both factors of a
// hidden unit come out of one product. Where there is no gate, all 64 are of up.
constexpr int64_t kColumns = 64;

// Hidden units that come out of a panel.
constexpr int64_t units_per_panel(Activation activation) {
  return is_gated(activation) ? kColumns / 2 : kColumns;
}

// A panel of floats is [depth][64]. A quantized panel is one block for each 32 of the depth:
// 64 scales in float16, in the formats that have them 64 zero points of a byte, then the codes.
// Those of int8 and int4 are stored unsigned (the value plus 128 or 8), so that all can be the
// unsigned operand of dot product instructions.
//   8 bits: [8 steps][64 columns][4 of the depth] bytes
//   4 bits: [4 steps][64 columns][4 of the depth] bytes; the low nibble holds the depth 8 * step +
//   0..3
//           and the high nibble 8 * step + 4..7
constexpr int64_t kBlock = 32;
constexpr int64_t kScaleBytes = kColumns * 2;

// Where the codes of a block begin.
constexpr int64_t codes_offset(Format format) {
  return kScaleBytes + (has_zero_points(format) ? kColumns : 0);
}

constexpr int64_t block_bytes(Format format) {
  return codes_offset(format) + kBlock * kColumns / (has_four_bits(format) ? 2 : 1);
}

// What nf4's codes mean: the values of bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314,
// appendix E).
constexpr float kNf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// The stored code of 0 in a format without zero points.
constexpr uint8_t zero_code(Format format) {
  return format == Format::kInt8 ? 128 : format == Format::kInt4 ? 8 : 7;
}

constexpr int64_t panel_bytes(Format format, int64_t depth) {
  if (is_quantized(format)) return round_up(depth, kBlock) / kBlock * block_bytes(format);
  return depth * kColumns * (format == Format::kFloat32 ? 4 : 2);
}

// 32 activations quantized to int8 for the product with a quantized panel: x = scale * codes.
// `sum` is that of the codes; it makes up for the weights' codes being unsigned or having a zero
// point: each weight of a column is its code less the same number.
struct QuantizedBlock {
  int8_t codes[kBlock];
  float scale;
  int32_t sum;
};

}  // namespace moe_export
