// Comparisons of kernels that multiply float16 by float16 with those that widen both.
#pragma once

#include "cpu/kernels.h"

namespace moe_export {

// Describes the first product, layer or matrix whose bits differ; null if none does. `halves` is
// the name of kernels with a product of halves, `widening` of the same kernels without.
const char* wrong_halves(const char* halves, const char* widening);

}  // namespace moe_export
