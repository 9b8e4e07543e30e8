// The operators Linear and LinearPacked for ONNX Runtime's CPU provider.
#pragma once

#include "ort/cpu_node.h"

namespace moe_export {

// Inputs: x, then weight, its scales and zero points as far as the format has them, and the bias if
// there is one.
struct LinearOp : CpuOp {
  explicit LinearOp(ort::ElementType x_type);
};

// Inputs: x, packed; see cpu/packed_linear.h.
struct LinearPackedOp : CpuOp {
  explicit LinearPackedOp(ort::ElementType x_type);
};

}  // namespace moe_export
