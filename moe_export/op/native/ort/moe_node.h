// The operators RaggedMoE and RaggedMoEPacked for ONNX Runtime's CPU provider.
#pragma once

#include "ort/cpu_node.h"

namespace moe_export {

// Inputs: x, expert_indices, routing_weights[, shared_weight][, those that the attribute
// extra_inputs names], the weights of each expert.
struct RaggedMoeOp : CpuOp {
  explicit RaggedMoeOp(ort::ElementType x_type);
};

// Inputs: x, expert_indices, routing_weights, packed[, shared_weight][, extra_inputs]; see
// cpu/packed.h.
struct RaggedMoePackedOp : CpuOp {
  explicit RaggedMoePackedOp(ort::ElementType x_type);
};

}  // namespace moe_export
