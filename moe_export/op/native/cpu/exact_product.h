// Products of integer codes with float32 activations.
#pragma once

#include "cpu/kernels.h"

namespace moe_export {

// A `Product` of so many sides with rows of floats: decodes the weights to float32, block by block.
// Slower than quantizing the activations; it shows what quantizing them costs in accuracy.
void exact_product(const Kernels& kernels, Format format, const uint8_t* panel, int64_t depth,
                   const void* const* rows, int count, int sides, float* sums);

}  // namespace moe_export
