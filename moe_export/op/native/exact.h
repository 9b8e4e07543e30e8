// Products of integer codes and float32 activations.
#pragma once

#include "kernels.h"

namespace moe_export {

// As `Product`, with rows of floats: the weights are brought back to float32, block by block.
// Slower than quantizing the activations, and for telling how much that costs in accuracy.
void exact_product(const Kernels& kernels, Format format, const uint8_t* panel, int64_t depth,
                   const void* const* rows, int count, float* sums);

}  // namespace moe_export
