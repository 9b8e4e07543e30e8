// Version 2 of 3, from plain to fast: AVX2 with FMA and F16C. Products are in products_2_avx2.h.
//
// To time it: `MOE_EXPORT_KERNEL=avx2 python -m tools.bench.op --candidates packed_int4`.
#include "cpu/kernels.h"

#if defined(__AVX2__)

#include "cpu/kernels_2_avx2.h"

const moe_export::Kernels* moe_export::avx2_kernels() {
  static constexpr Kernels kernels = kernels_named("avx2");
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::avx2_kernels() { return nullptr; }

#endif
