// Version 6, for Arm with FEAT_I8MM, such as Cortex-A710, Neoverse V1 and N2, and Apple M2.
//
// To time it: `MOE_EXPORT_KERNEL=i8mm python -m tools.bench.op --candidates packed_int4`.
#include "cpu/kernels.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)

#include "cpu/kernels_4_neon.h"

const moe_export::Kernels* moe_export::i8mm_kernels() {
  static constexpr Kernels kernels = kernels_named("i8mm");
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::i8mm_kernels() { return nullptr; }

#endif
