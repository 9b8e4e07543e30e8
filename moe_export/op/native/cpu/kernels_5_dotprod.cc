// Version 5, for Arm with FEAT_DotProd, such as Cortex-A76, Neoverse N1 and Apple M1.
//
// To time it: `MOE_EXPORT_KERNEL=dotprod python -m tools.bench.op --candidates packed_int4`.
#include "cpu/kernels.h"

#if defined(__ARM_FEATURE_DOTPROD)

#include "cpu/kernels_4_neon.h"

const moe_export::Kernels* moe_export::dotprod_kernels() {
  static constexpr Kernels kernels = kernels_named("dotprod");
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::dotprod_kernels() { return nullptr; }

#endif
