// The arithmetic of a layer, once per instruction set. Versions from plain to fast:
//
//   kernels_1_portable.cc   plain C++, for every processor
//   kernels_2_avx2.cc       AVX2, FMA and F16C: rows take turns with a chunk of a panel in cache
//   kernels_2_avxvnni.cc    the same with AVX-VNNI's dot products
//   kernels_3_avx512.cc     AVX-512 with VNNI: up to twelve rows by 16 columns in registers
//   kernels_4_neon.cc       Arm: products of codes are summed in 16 bits
//   kernels_5_dotprod.cc    the same with dot products of 4 codes
//   kernels_6_i8mm.cc       the same with products of 2 rows by 2 columns
//   kernels_7_fhm.cc        the same, and float16 is multiplied without being widened
//
// To time one, here AVX2 with one token a step:
//
//   MOE_EXPORT_KERNEL=avx2 python -m tools.bench.op --candidates packed_int4 --tokens 1
//
// The files are compiled with different flags. Headers that they include must keep functions in
// anonymous namespaces, or the linker could share one file's code with another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/panels.h"
#include "cpu/rounding.h"

namespace moe_export {

// Most rows of one product. With 12 rows of 16 columns, AVX-512 keeps the sums of a block and those
// of all blocks in its 32 registers, and splits four-bit codes once for 12 rows.
constexpr int kTile = 12;

// Most rows of 64 columns of which AVX-512 keeps the sums in registers, with weights beside them.
constexpr int kRegisterRows = 6;

// gelu(a) = a * sigmoid(a * (kGeluLinear + kGeluCubic * a * a)), as in op/reference.py.
constexpr float kGeluLinear = 1.5957691216057308f;
constexpr float kGeluCubic = 0.07135481282550528f;

// sums[row * 64 + column] = sum over d < depth of rows[row][d] * panel[d][column], in float32.
// `rows` point to floats, or to QuantizedBlocks in formats of integer codes; 1 <= count <= kTile.
// A product of two sides reads rows[2 * row] for the first 32 columns, which are gate's, and
// rows[2 * row + 1] for the others, which are up's.
using Product = void(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
                     float* sums);

// A product for each format, in the order of `Format`.
struct Products {
  Product* of_format[kNumFormats];

  Product* operator[](Format format) const { return of_format[static_cast<int>(format)]; }
};

struct Kernels {
  const char* name;
  Products products[2];  // of one side, and of two
  // hidden[unit] = f(sums[unit]) * sums[32 + unit] for 32 units, or f(sums[unit]) for 64 where
  // there is no gate; in the order of `Activation`.
  void (*activate[kNumActivations])(const float* sums, float* hidden);
  // Quantizes `count` values to one block per 32; the last block is filled up with zeros.
  void (*quantize)(const float* values, int64_t count, QuantizedBlock* blocks);
  // float16 to float32, and back.
  void (*widen)(const uint16_t* halves, int64_t count, float* values);
  void (*narrow)(const float* values, int64_t count, uint16_t* halves);
  // The rounding of weights that goes with this instruction set.
  const Rounding* (*rounding)();
  // A product of one side in Format::kFloat16 whose rows point to float16; null where there is
  // none. Sums are those of the same rows as floats, to the bit.
  Product* product_of_halves = nullptr;
};

// The kernels of an instruction set; null if the library was built for another processor family.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();
const Kernels* dotprod_kernels();
const Kernels* i8mm_kernels();
const Kernels* fhm_kernels();

}  // namespace moe_export
