// The arithmetic of a layer, once per instruction set, and the choice among them.
//
// The files kernels_1_portable.cc, kernels_2_avx2.cc and kernels_3_avx512.cc say the same thing
// from plain to fast. They are compiled with different flags, so nothing that they include may hold
// inline functions which the linker could share between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.h"

namespace moe_export {

// Rows that one product takes at most: with 6 rows of 64 columns AVX-512 keeps the 24 sums, 4
// vectors of weights and an activation in its 32 registers.
constexpr int kTile = 6;

// gelu(a) = a * sigmoid(a * (kGeluLinear + kGeluCubic * a * a)), as in op/reference.py.
constexpr float kGeluLinear = 1.5957691216057308f;
constexpr float kGeluCubic = 0.07135481282550528f;

// sums[row * 64 + column] = sum over d < depth of rows[row][d] * panel[d][column], in float32.
// `rows` point to floats, for the formats of integer codes to QuantizedBlocks; 1 <= count <= kTile.
using Product = void(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
                     float* sums);

struct Kernels {
  const char* name;
  Product* product[kNumFormats];  // in the order of `Format`
  // hidden[unit] = f(sums[unit]) * sums[32 + unit] for 32 units, or f(sums[unit]) for 64 where
  // there is no gate; in the order of `Activation`.
  void (*activate[kNumActivations])(const float* sums, float* hidden);
  // One block for each 32 of `count` values; the last is filled up with zeros.
  void (*quantize)(const float* values, int64_t count, QuantizedBlock* blocks);
  void (*widen)(const uint16_t* halves, int64_t count, float* values);
  void (*narrow)(const float* values, int64_t count, uint16_t* halves);
};

// Null where the library was built for another processor family.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace moe_export
