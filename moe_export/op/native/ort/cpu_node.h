// The operators RaggedMoE and RaggedMoEPacked for ONNX Runtime's CPU provider.
#pragma once

#include "ort/abi.h"

namespace moe_export {

// The common part of the operators, for x of one element type.
struct MoeOp : ort::CustomOp {
  explicit MoeOp(ort::ElementType x_type);

  ort::ElementType x_type;
};

// Inputs: x, expert_indices, routing_weights[, shared_weight], the weights of each expert.
struct RaggedMoeOp : MoeOp {
  explicit RaggedMoeOp(ort::ElementType x_type);
};

// Inputs: x, expert_indices, routing_weights, packed[, shared_weight]; see cpu/packed.h.
struct RaggedMoePackedOp : MoeOp {
  explicit RaggedMoePackedOp(ort::ElementType x_type);
};

}  // namespace moe_export
