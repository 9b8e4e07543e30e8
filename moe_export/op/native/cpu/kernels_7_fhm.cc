// Version 7, for Arm with FEAT_I8MM and FEAT_FHM, such as Neoverse V1 and N2, and Apple M2. All but
// the product of float16 is that of version 6.
//
// To time it: `MOE_EXPORT_KERNEL=fhm python -m tools.bench.op --candidates ragged_float16`.
#include "cpu/kernels.h"

#if defined(__ARM_FEATURE_FP16_FML)

#include "cpu/products_7_fhm.h"

namespace moe_export {
namespace {

Kernels with_halves(Kernels kernels) {
  kernels.name = "fhm";
  kernels.product_of_halves = by_count<FloatProduct<Halves>, 1>;
  return kernels;
}

}  // namespace
}  // namespace moe_export

const moe_export::Kernels* moe_export::fhm_kernels() {
  if (i8mm_kernels() == nullptr) return nullptr;
  static const Kernels kernels = with_halves(*i8mm_kernels());
  return &kernels;
}

#else

const moe_export::Kernels* moe_export::fhm_kernels() { return nullptr; }

#endif
