// Version 2 with AVX-VNNI, which multiplies and adds four codes in one instruction.
//
// Only tests compile it with AVX-512's encoding of that instruction.
#include "cpu/kernels.h"

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))

#define MOE_EXPORT_DOT_PRODUCTS
#include "cpu/kernels_2_avx2.h"

const moe_export::Kernels* moe_export::avxvnni_kernels() {
  static constexpr Kernels kernels = kernels_named("avxvnni");
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::avxvnni_kernels() { return nullptr; }

#endif
