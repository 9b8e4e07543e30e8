// Rounding weights to codes. `moe_export/formats` is the definition, which this follows bit for
// bit.
#pragma once

#include "c_api.h"

namespace moe_export {

enum Rounded { kRounded = 0, kNotFinite = 1, kScaleTooLarge = 2, kNoSuchFormat = 3 };

Rounded quantize(const MoeRounding& job);

// Of each column, the squares of the differences between what codes mean and the values, and of the
// values, summed up.
Rounded squared_error(const MoeRounding& job, double* lost, double* norm);

}  // namespace moe_export
