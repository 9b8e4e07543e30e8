// RaggedMoE for ONNX Runtime's CUDA provider.
#pragma once

#include "node.h"

namespace moe_export {

// The operator for x of one element type, on CUDA.
struct CudaRaggedMoeOp : RaggedMoeOp {
  explicit CudaRaggedMoeOp(ort::ElementType x_type);
};

// Gives the operator the inputs that CudaRaggedMoeOp has: ONNX Runtime wants operators of one name
// to agree on them.
void take_placed_inputs(ort::CustomOp* op);

}  // namespace moe_export
