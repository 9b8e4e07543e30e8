// Formats of weights, element types and activations: one table for each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_export {

// Element types, by their numbers in ONNX.
enum Type : int32_t {
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
  kUint4 = 21,
  kInt4 = 22,
};

// In the order of `FORMATS` in op/spec.py.
enum class Format { kFloat32, kFloat16, kBfloat16, kInt8, kInt4, kUint8, kUint4, kNf4 };
constexpr int kNumFormats = 8;

// One row of the table of formats; for codes as in formats/grid.py.
struct FormatFacts {
  const char* name;
  Type weight_type;
  int bits;             // of a weight, or of its code
  bool takes_float32;   // x may be float32
  bool takes_float16;   // x may be float16
  bool is_quantized;    // codes with scales
  bool has_zero_point;  // one per group, beside its scale
  bool has_codebook;    // codes are indices in a table of floats
  float low, high;      // least and greatest code
};

// In the order of `Format`.
constexpr FormatFacts kFormats[kNumFormats] = {
    {"float32", kFloat32, 32, true, false, false, false, false, 0, 0},
    {"float16", kFloat16, 16, false, true, false, false, false, 0, 0},
    {"bfloat16", kBfloat16, 16, true, true, false, false, false, 0, 0},
    {"int8", kInt8, 8, true, true, true, false, false, -127, 127},
    {"int4", kInt4, 4, true, true, true, false, false, -8, 7},
    {"uint8", kUint8, 8, true, true, true, true, false, 0, 255},
    {"uint4", kUint4, 4, true, true, true, true, false, 0, 15},
    {"nf4", kUint4, 4, true, true, true, false, true, 0, 15},
};

constexpr const FormatFacts& facts_of(Format format) { return kFormats[static_cast<int>(format)]; }

constexpr bool is_quantized(Format format) { return facts_of(format).is_quantized; }

constexpr bool has_zero_points(Format format) { return facts_of(format).has_zero_point; }

// Values or codes, then scales, then zero points, as far as the format has them.
constexpr int tensors_per_matrix(Format format) {
  return 1 + (is_quantized(format) ? 1 : 0) + (has_zero_points(format) ? 1 : 0);
}

// True if the codes are numbers, which can be multiplied by activations in int8.
constexpr bool has_integer_codes(Format format) {
  return is_quantized(format) && !facts_of(format).has_codebook;
}

constexpr bool has_four_bits(Format format) { return facts_of(format).bits == 4; }

// The activation between an expert's matrices, in the order of `ACTIVATIONS` in op/spec.py. The
// gated ones come first.
enum class Activation { kSwiglu, kGeglu, kSilu, kRelu, kRelu2 };
constexpr int kNumActivations = 5;

// In the order of `Activation`.
constexpr const char* kActivationNames[kNumActivations] = {"swiglu", "geglu", "silu", "relu",
                                                           "relu2"};

constexpr bool is_gated(Activation activation) { return activation <= Activation::kGeglu; }

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Values of nf4's codes, as in bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
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

}  // namespace moe_export
