// A RaggedMoE node as ONNX Runtime sees it: from its calls to ours.
#pragma once

#include "ort_abi.h"

namespace moe_export {

// The operator for x of one element type.
struct RaggedMoeOp : ort::CustomOp {
  explicit RaggedMoeOp(ort::ElementType x_type);

  ort::ElementType x_type;
};

}  // namespace moe_export
