// Version 4, for Arm: Armv8-A, such as Cortex-A72. Products are in products_4_neon.h and
// codes_4_neon.h.
//
// To time it: `MOE_EXPORT_KERNEL=neon python -m tools.bench.op --candidates packed_int4`.
#include "cpu/kernels.h"

#if defined(__aarch64__)

#include "cpu/kernels_4_neon.h"

const moe_export::Kernels* moe_export::neon_kernels() {
  static constexpr Kernels kernels = kernels_named("neon");
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::neon_kernels() { return nullptr; }

#endif
