// The operator RaggedMoE for ONNX Runtime's CUDA provider.
#pragma once

#include "ort/moe_node.h"

namespace moe_export {

// The operator for x of one element type.
struct CudaRaggedMoeOp : RaggedMoeOp {
  explicit CudaRaggedMoeOp(ort::ElementType x_type);
};

// Declares the inputs of CudaRaggedMoeOp for another operator: ONNX Runtime requires operators of
// one name to agree on them.
void take_placed_inputs(ort::CustomOp* op);

}  // namespace moe_export
