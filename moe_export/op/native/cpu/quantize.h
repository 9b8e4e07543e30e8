// Rounds weights to codes, bit for bit as `moe_export/formats` defines it.
#pragma once

#include "cpu/c_api.h"

namespace moe_export {

enum Rounded { kRounded = 0, kNotFinite = 1, kScaleTooLarge = 2, kNoSuchFormat = 3 };

Rounded quantize(const MoeRounding& job);

// Sums over each column the squared differences between decoded codes and values, and the squared
// values.
Rounded squared_error(const MoeRounding& job, double* lost, double* norm);

}  // namespace moe_export
