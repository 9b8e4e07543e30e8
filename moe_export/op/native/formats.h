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
  kInt4 = 22,
};

enum class Format { kFloat32, kFloat16, kBfloat16, kInt8, kInt4 };
constexpr int kNumFormats = 5;

constexpr bool is_quantized(Format format) { return format >= Format::kInt8; }

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
// 64 scales in float16, then the codes, which are unsigned (the value plus 128 or 8), so that they
// can be the unsigned operand of dot product instructions.
//   int8: [8 steps][64 columns][4 of the depth] bytes
//   int4: [4 steps][64 columns][4 of the depth] bytes; the low nibble holds the depth 8 * step +
//   0..3
//         and the high nibble 8 * step + 4..7
constexpr int64_t kBlock = 32;
constexpr int64_t kScaleBytes = kColumns * 2;
constexpr int64_t kInt8BlockBytes = kScaleBytes + kBlock * kColumns;
constexpr int64_t kInt4BlockBytes = kScaleBytes + kBlock * kColumns / 2;

constexpr int64_t panel_bytes(Format format, int64_t depth) {
  switch (format) {
    case Format::kFloat32:
      return depth * kColumns * 4;
    case Format::kFloat16:
    case Format::kBfloat16:
      return depth * kColumns * 2;
    case Format::kInt8:
      return round_up(depth, kBlock) / kBlock * kInt8BlockBytes;
    case Format::kInt4:
      return round_up(depth, kBlock) / kBlock * kInt4BlockBytes;
  }
  return 0;
}

// 32 activations quantized to int8 for the product with a quantized panel: x = scale * codes.
// `sum` is that of the codes; it makes up for the weights' codes being unsigned.
struct QuantizedBlock {
  int8_t codes[kBlock];
  float scale;
  int32_t sum;
};

}  // namespace moe_export
