// RaggedMoE and RaggedMoEPacked nodes as ONNX Runtime sees them: from its calls to ours.
#pragma once

#include "ort_abi.h"

namespace moe_export {

// What the operators have in common, for x of one element type.
struct MoeOp : ort::CustomOp {
  explicit MoeOp(ort::ElementType x_type);

  ort::ElementType x_type;
};

// x, expert_indices, routing_weights[, shared_weight], the weights of each expert.
struct RaggedMoeOp : MoeOp {
  explicit RaggedMoeOp(ort::ElementType x_type);
};

// x, expert_indices, routing_weights, packed[, shared_weight]; see packed.h.
struct RaggedMoePackedOp : MoeOp {
  explicit RaggedMoePackedOp(ort::ElementType x_type);
};

}  // namespace moe_export
